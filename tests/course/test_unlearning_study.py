"""The experiment behind notebook 11, on one epoch per task."""

from __future__ import annotations

import copy

import pytest
import torch

from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.study import (
    Study,
    compare,
    distance,
    flat,
    known,
    probability_of_less,
    pull,
    relearn,
    repair,
)
from ewc_tutorial.course.training import accuracies


@pytest.fixture(scope="module")
def study():
    return Study(n_tasks=2, seed=3, epochs=1)


@pytest.fixture(scope="module")
def memory(study):
    return study.learn()


def test_retraining_without_the_last_task_is_forgetting_it_bit_for_bit(study, memory):
    after = copy.deepcopy(memory)
    after.forget("B")
    retrained = study.learn(without=1)
    assert torch.equal(flat(after.ewc.model), flat(retrained.ewc.model))
    for name, S in after.ewc.importance.items():
        assert torch.equal(S, retrained.ewc.importance[name])


def test_a_retrained_network_sees_the_same_batches_of_the_kept_tasks(study):
    seen = [study.batches(1).initial_seed(), study.batches(1).initial_seed()]
    assert seen[0] == seen[1]
    assert (
        len({study.batches(n, order).initial_seed() for n in range(3) for order in range(3)}) == 9
    )
    alone = study.learn(without=0)
    assert alone.tasks == ("B",)


def test_other_batches_and_other_weights_give_other_networks(study):
    nets = [
        study.learn(without=1, **options).ewc.model for options in ({}, {"order": 1}, {"init": 99})
    ]
    assert 0 < distance(nets[0], nets[1]) < distance(nets[0], nets[2])


def test_plain_learning_has_no_springs():
    memory = Study(n_tasks=2, method="plain", epochs=1).learn()
    assert memory.ewc.penalty().item() == 0
    with pytest.raises(ValueError, match="method must be one of plain, EWC, not 'SI'"):
        Study(method="SI")


def test_a_network_compared_with_itself(study, memory):
    model = memory.ewc.model
    found = compare(model, model, study.tasks, forgotten=0)
    right = accuracies(model, [task.test.tensors for task in study.tasks])
    assert (found["forgotten"], found["kept"]) == tuple(right)
    assert found["distance"] == found["kept_disagreement"] == 0
    assert found["forgotten_kl"] == pytest.approx(0, abs=1e-12)
    assert 0.4 < found["membership"] < 0.7


def test_helpers_work_on_copies(study, memory):
    model = memory.ewc.model
    before = flat(model)
    repair(model, study.tasks)
    after_none, after_five = relearn(model, study.tasks[0], [0, 5])
    assert 0 <= after_none <= 1
    assert 0 <= after_five <= 1
    assert not torch.equal(flat(pull(memory, 2)), before)
    assert torch.equal(flat(model), before)


def test_repair_teaches_an_untrained_network(study):
    fresh = PROTOCOL.model(study.tasks, 0)
    tests = [task.test.tensors for task in study.tasks]
    assert min(accuracies(repair(fresh, study.tasks), tests)) > max(accuracies(fresh, tests)) + 0.2


def test_the_probability_of_less_counts_pairs():
    values, others = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.5])
    # 1 < 2, 1 < 2.5, 2 = 2, 2 < 2.5, and 3 is less than neither.
    assert probability_of_less(values, others) == pytest.approx(3.5 / 6)


def test_known_compares_every_image_of_a_task_with_every_one_of_a_task_that_nobody_met(
    study, memory
):
    model, (task, _) = memory.ewc.model, study.tasks
    assert [task.name for task in study.tasks] + [study.unseen.name] == ["A", "B", "C"]
    losses = []
    for x, y in (task.test.tensors, study.unseen.test.tensors):
        p = model(x).double().softmax(1).detach()
        losses.append(-p[range(len(y)), y].log())
    less = sum((one < losses[1]).sum().item() for one in losses[0])
    expected = less / (len(losses[0]) * len(losses[1]))
    assert known(model, task, study.unseen) == pytest.approx(expected, abs=1e-4)
    assert expected > 0.7
    fresh = PROTOCOL.model(study.tasks, 0)
    assert known(fresh, task, study.unseen) == pytest.approx(0.5, abs=0.1)
