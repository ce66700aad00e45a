"""The textbook functions of notebook 07 against loops over lists, and the package's growing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import reference
from ewc_tutorial.course.scenarios import scenario_net, scenario_tasks


@pytest.mark.parametrize("mask", [[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
def test_masked_log_probs_are_shares_of_the_active_exponentials(mask):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = reference.masked_log_probs(logits, torch.tensor(mask, dtype=torch.bool))
    for row, scores in zip(found.tolist(), logits.tolist(), strict=True):
        kept = [math.exp(s) for s, on in zip(scores, mask, strict=True) if on]
        assert row == pytest.approx([math.log(e / sum(kept)) for e in kept], abs=1e-12)


@pytest.mark.parametrize(("classes", "per_task"), [(10, 2), (6, 3), (4, 4), (3, 1)])
def test_three_accuracies_by_sorting_the_classes(classes, per_task):
    generator = torch.Generator().manual_seed(classes)
    y = torch.randint(classes, (60,), generator=generator)
    logits = torch.randn(60, classes, generator=generator)
    logits[torch.arange(60), y] += 1.0
    right = [0, 0, 0]
    for scores, label in zip(logits.tolist(), y.tolist(), strict=True):
        ranking = sorted(range(classes), key=lambda c: -scores[c])
        task = [c for c in ranking if c // per_task == label // per_task]
        right[0] += task[0] == label
        right[1] += ranking[0] % per_task == label % per_task
        right[2] += ranking[0] == label
    found = reference.three_accuracies(logits, y, per_task)
    assert all(isinstance(share, float) for share in found)
    assert found == pytest.approx([r / 60 for r in right])


def test_a_label_too_few_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        reference.three_accuracies(torch.eye(4), torch.tensor([0, 1]), 2)


def test_a_grown_head_is_what_the_ewc_class_follows():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    ewc = EWC(model, lam=1.0)
    weight = model[0].weight.detach().clone()
    fisher, fresh = torch.rand(2, 3, generator=generator), torch.randn(4, 3, generator=generator)
    ewc.merge({"0.weight": fisher})
    model[0] = nn.Linear(3, 6, bias=False)
    ewc.grow_()
    found = reference.grow_head(weight, fisher, fresh)
    assert found[0].tolist() == weight.tolist() + fresh.tolist()
    assert torch.equal(found[1], ewc.importance["0.weight"])


@pytest.mark.parametrize(
    ("tasks", "told", "plan"),
    [
        # Task-incremental: heads of their own, none of which another task moves.
        ([(7, 2), (0, 9)], True, [([0, 1], [0, 1], []), ([2, 3], [2, 3], [])]),
        # Domain-incremental: one head, which every task moves.
        ([(1, 0), (1, 0)], False, [([0, 1], [0, 1], []), ([0, 1], [0, 1], [0, 1])]),
        # Class-incremental: the head grows, all that is there competes.
        ([(7, 2), (0, 9)], False, [([0, 1], [0, 1], []), ([2, 3], [0, 1, 2, 3], [0, 1])]),
        # Class 2 comes again.
        ([(7, 2), (2, 9)], True, [([0, 1], [0, 1], []), ([1, 2], [1, 2], [1])]),
        ([(7, 2), (9, 2)], True, [([0, 1], [0, 1], []), ([2, 1], [1, 2], [1])]),
        ([(7, 2), (2, 9)], False, [([0, 1], [0, 1], []), ([1, 2], [0, 1, 2], [0, 1])]),
    ],
)
def test_the_three_scenarios_follow_from_two_facts(tasks, told, plan):
    assert reference.design_head(tasks, told) == plan


def test_the_designed_head_is_that_of_the_scenarios_networks():
    """Rows and competing classes against ``ScenarioNet``: shapes of its heads after each task."""
    split = scenario_tasks("class")
    plan = reference.design_head([task.classes for task in split], told=False)
    net = scenario_net("class")
    for number, (task, (rows, competing, held)) in enumerate(zip(split, plan, strict=True)):
        net.begin(number)
        assert tuple(rows) == task.classes
        assert len(competing) == len(net.head.weight)
        assert len(held) == 2 * number
