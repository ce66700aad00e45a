"""Scenarios: against brute force on tiny networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ewc_tutorial.course import reference
from ewc_tutorial.course.scenarios import (
    SCENARIOS,
    MovingFisher,
    ScenarioNet,
    bias_correction,
    grow_linear,
    learn_scenario,
    masked_log_probs,
    scenario_accuracies,
    scenario_net,
    scenario_tasks,
    task_confusion,
)
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import train
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher import fisher_diagonal


def tiny_tasks(scenario: str, n_tasks: int = 3, seed: int = 0) -> list[Task]:
    """Return tasks of two classes each: Gaussian clouds in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for index in range(n_tasks):
        shift = 2 * index if scenario == "class" else 0
        centres = 2 * torch.randn(2, 4, generator=generator)

        def draw(n: int, centres=centres, shift=shift) -> TensorDataset:
            y = torch.arange(n) % 2
            return TensorDataset(
                centres[y] + 0.5 * torch.randn(n, 4, generator=generator), y + shift
            )

        tasks.append(Task(f"T{index}", draw(24), draw(10), (shift, shift + 1)))
    return tasks


def tiny_net(scenario: str, n_tasks: int = 3, **options) -> ScenarioNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    return ScenarioNet(backbone, 5, n_tasks, 2, scenario, **options)


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


# --- masks ----------------------------------------------------------------------------------


def test_a_mask_is_the_softmax_over_the_subset():
    logits = torch.randn(7, 6, dtype=torch.float64)
    active = torch.tensor([False, True, False, True, True, False])
    masked = masked_log_probs(logits, active)
    torch.testing.assert_close(masked[:, active], logits[:, active].log_softmax(1))
    assert (masked[:, ~active] == -torch.inf).all()
    torch.testing.assert_close(masked[:, active], reference.masked_log_probs(logits, active))


def test_a_mask_may_differ_by_sample_and_masked_logits_get_no_gradient():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    active = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 1, 0]]).bool()
    masked = masked_log_probs(logits, active)
    for row, on, found in zip(logits, active, masked, strict=True):
        torch.testing.assert_close(found[on], row[on].log_softmax(0))
    functional.nll_loss(masked, torch.ones(4, dtype=torch.int64)).backward()
    assert (logits.grad[~active] == 0).all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("active", [(0, 1), (1, 2, 4)])
def test_fisher_of_active_classes_is_that_of_a_network_which_has_no_others(active):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5)).double()
    small = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, len(active))).double()
    rows = list(active)
    small.load_state_dict(
        net.state_dict() | {k: net.state_dict()[k][rows] for k in ("2.weight", "2.bias")}
    )
    x = torch.randn(9, 4, dtype=torch.float64)
    F = fisher_diagonal(net, (x, None), classes=active)
    wanted = reference.fisher_exact(small, x)
    torch.testing.assert_close(F["0.weight"], wanted["0.weight"])
    torch.testing.assert_close(F["2.weight"][rows], wanted["2.weight"])
    others = [row for row in range(5) if row not in active]
    assert (F["2.weight"][others] == 0).all()


# --- growing --------------------------------------------------------------------------------


def test_growing_keeps_the_old_rows_bit_for_bit_and_the_old_logits():
    torch.manual_seed(2)
    old = nn.Linear(4, 2)
    grown = grow_linear(old, torch.ones(3, 4), torch.zeros(3))
    assert torch.equal(grown.weight[:2], old.weight)
    assert torch.equal(grown.bias[:2], old.bias)
    x = torch.randn(6, 4)
    # A product with more rows may add up in another order: the last bit is not promised.
    torch.testing.assert_close(grown(x)[:, :2], old(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grown(x)[:, 2:], x.sum(1, keepdim=True).expand(6, 3))


def test_a_grown_head_has_the_rows_of_a_head_made_at_once():
    growing, whole = tiny_net("class"), tiny_net("class", grow=False)
    assert growing.head.out_features == 2
    assert growing.begin(1)
    assert not growing.begin(1)
    assert growing.begin(2)
    assert not whole.begin(2)
    assert torch.equal(growing.head.weight, whole.head.weight)
    assert torch.equal(growing.head.bias, whole.head.bias)


@pytest.mark.parametrize("rule", ["separate", "latest", "average"])
def test_ewc_follows_a_grown_head(rule):
    net, (first, *_) = tiny_net("class"), tiny_tasks("class")
    ewc = EWC(net, lam=3.0, rule=rule)
    train(net, first, steps=10)
    ewc.consolidate(first)
    F, theta = ({k: v.clone() for k, v in d.items()} for d in (ewc.importance, ewc.anchor))
    cost = ewc.penalty().item()
    net.begin(1)
    with pytest.raises(RuntimeError, match="grow_"):
        ewc.penalty()
    ewc.grow_()
    for name in F:
        n = len(F[name])
        assert torch.equal(ewc.importance[name][:n], F[name])
        assert torch.equal(ewc.anchor[name][:n], theta[name])
        assert (ewc.importance[name][n:] == 0).all()
    assert ewc.penalty().item() == cost
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    by_hand = 1.5 * sum(F[k].sum() for k in F)  # every protected weight has moved by one
    torch.testing.assert_close(ewc.penalty(), by_hand)
    new = net.head.weight[2:].clone()
    ewc.lam = 1e12
    ewc.proximal_step_(0.1)
    assert torch.equal(net.head.weight[2:], new)
    used = F["head.weight"] > 1e-6
    torch.testing.assert_close(net.head.weight[:2][used], theta["head.weight"][used])


def test_growing_ewc_twice_or_for_nothing_changes_nothing():
    net, (first, *_) = tiny_net("class"), tiny_tasks("class")
    ewc = EWC(net)
    ewc.consolidate(first)
    before = {k: v.clone() for k, v in ewc.importance.items()}
    ewc.grow_()
    assert all(torch.equal(before[k], v) for k, v in ewc.importance.items())
    net.begin(1)
    ewc.grow_()
    ewc.grow_()
    assert ewc.importance["head.weight"].shape == (4, 5)
    ewc.load_state_dict(ewc.state_dict())


def test_growing_ewc_refuses_other_changes():
    net = tiny_net("class")
    ewc = EWC(net)
    net.head = nn.Linear(6, 4)
    with pytest.raises(RuntimeError, match="has shape"):
        ewc.grow_()
    del net.head
    with pytest.raises(RuntimeError, match="no parameter"):
        ewc.grow_()


# --- learning -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_heads_of_other_tasks_never_move(optimizer):
    net, tasks = tiny_net("task"), tiny_tasks("task")
    ewc = EWC(net, lam=1.0, exclude=net.exclude)
    for index, task in enumerate(tasks):
        net.begin(index)
        before = snapshot(net)
        train(net, task, steps=5, optimizer=optimizer, ewc=ewc)
        ewc.consolidate(task)
        for name, p in net.named_parameters():
            own = name.startswith((f"heads.{index}.", "backbone."))
            assert torch.equal(p, before[name]) != own


def test_protecting_the_heads_too_changes_nothing():
    outcomes = []
    for exclude in ("heads.*", None):
        net = tiny_net("task")
        learn_scenario(net, tiny_tasks("task"), EWC(net, 10.0, exclude=exclude), steps=8)
        outcomes.append(snapshot(net))
    for name, value in outcomes[0].items():
        torch.testing.assert_close(value, outcomes[1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_learning_is_training_and_consolidating_task_by_task(scenario):
    tasks = tiny_tasks(scenario)
    net, twin = tiny_net(scenario), tiny_net(scenario)
    options = {"lr": 0.05, "batch_size": 16, "optimizer": torch.optim.SGD}
    history = learn_scenario(net, tasks, EWC(net, 5.0), steps=6, seed=3, **options)
    order = torch.Generator().manual_seed(3)
    ewc, rows = EWC(twin, 5.0), []
    for index, task in enumerate(tasks):
        if twin.begin(index):
            ewc.grow_()
        train(twin, task, steps=6, ewc=ewc, generator=order, **options)
        ewc.consolidate(task)
        rows.append(scenario_accuracies(twin, tasks))
    assert all(torch.equal(p, snapshot(net)[name]) for name, p in twin.named_parameters())
    assert history.accuracy.tolist() == rows
    assert history.curves.shape == (len(history.steps), 3)
    assert history.boundaries.tolist() == [6, 12, 18]


def test_accuracies_are_those_of_the_scenario():
    for scenario in SCENARIOS:
        tasks, net = tiny_tasks(scenario), tiny_net(scenario)
        net.begin(1)
        for index, (task, found) in enumerate(
            zip(tasks, scenario_accuracies(net, tasks), strict=True)
        ):
            x, y = task.test.tensors
            logits = net.all_logits(x)
            if scenario == "task":
                logits = logits[:, 2 * index : 2 * index + 2]
            assert found == pytest.approx(reference.accuracy(logits, y))
        assert net.current == 1
        if scenario == "class":
            assert found == 0


@pytest.mark.slow
def test_joint_training_learns_every_task_with_its_own_head():
    net, tasks = tiny_net("task"), tiny_tasks("task")
    history = learn_scenario(net, tasks, joint=True, steps=200, lr=0.03)
    assert history.accuracy[-1].min() >= 0.9


def test_joint_loss_is_that_of_each_samples_own_head():
    net, tasks = tiny_net("task"), tiny_tasks("task")
    from ewc_tutorial.course.scenarios import joint_problem

    model, data, loss = joint_problem(net, tasks)
    x, y = data.tensors
    total = 0.0
    for index, task in enumerate(tasks):
        net.current = index
        xs, ys = task.train.tensors
        total += functional.cross_entropy(net(xs), ys, reduction="sum")
    torch.testing.assert_close(loss(model(x), y), total / len(x))


def test_wrong_arguments_are_named():
    tasks, net = tiny_tasks("task"), tiny_net("task")
    with pytest.raises(ValueError, match="scenario must be one of"):
        tiny_net("tasks")
    with pytest.raises(ValueError, match="has 3 tasks, but there are 2"):
        learn_scenario(net, tasks[:2], steps=1)
    with pytest.raises(ValueError, match="joint=True"):
        learn_scenario(net, tasks, EWC(net), joint=True, steps=1)
    with pytest.raises(ValueError, match="fisher_at"):
        learn_scenario(net, tasks, EWC(net), fisher_at="sometimes", steps=1)
    with pytest.raises(ValueError, match="labels"):
        learn_scenario(tiny_net("class"), tasks, steps=1)
    with pytest.raises(ValueError, match="labels"):
        learn_scenario(net, tiny_tasks("class"), steps=1)


# --- the Fisher information during training -------------------------------------------------


@pytest.mark.parametrize("estimator", ["exact", "empirical", "batched"])
def test_moving_fisher_is_the_mean_over_the_weights_on_the_way(estimator):
    net, (task, *_) = tiny_net("domain"), tiny_tasks("domain")
    moving = MovingFisher(net, task, every=2, batch_size=24, estimator=estimator)
    found = []

    def on_step(step: int) -> None:
        moving(step)
        if step % 2 == 0:
            found.append(fisher_diagonal(net, task, estimator, batch_size=24))

    train(net, task, steps=6, on_step=on_step)
    assert moving.count == 3
    for name, F in moving.mean().items():
        torch.testing.assert_close(F, sum(each[name] for each in found) / 3)


def test_moving_fisher_needs_a_measurement():
    net, (task, *_) = tiny_net("domain"), tiny_tasks("domain")
    with pytest.raises(ValueError, match="no measurement"):
        MovingFisher(net, task).mean()


def test_fisher_during_training_leaves_the_first_task_as_it_was():
    outcomes = []
    for fisher_at in ("end", "during"):
        net = tiny_net("domain")
        ewc = EWC(net, 10.0)
        history = learn_scenario(
            net, tiny_tasks("domain"), ewc, steps=10, lr=0.02, fisher_at=fisher_at
        )
        outcomes.append((history.accuracy[0], ewc.importance["backbone.0.weight"]))
    assert outcomes[0][0].tolist() == outcomes[1][0].tolist()
    assert outcomes[1][1].sum() > outcomes[0][1].sum()  # F shrinks as training goes on


# --- where a class-incremental answer goes wrong ---------------------------------------------


def test_confusion_counts_tasks():
    logits = torch.eye(6)[[0, 1, 2, 5, 5, 3]]
    y = torch.tensor([1, 0, 2, 3, 4, 5])
    found = task_confusion(logits, y, per_task=2)
    assert found.tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]]


def test_bias_correction_never_raises_the_loss_and_keeps_the_answers_within_a_task():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 6, generator=generator)
    y = torch.arange(60) % 6
    logits[:, 4:] += 5  # the last task shouts
    offsets = bias_correction(logits, y, per_task=2)
    assert offsets.shape == (6,)
    assert torch.equal(offsets[::2], offsets[1::2])
    corrected = logits + offsets
    assert functional.cross_entropy(corrected, y) < functional.cross_entropy(logits, y)
    # At the optimum each task gets, in the mean, the probability that it has in the data.
    mass = corrected.softmax(1).view(60, 3, 2).sum(2).mean(0)
    torch.testing.assert_close(mass, torch.full((3,), 1 / 3), rtol=0, atol=1e-3)


def test_the_course_network_starts_alike_in_all_scenarios():
    nets = {scenario: scenario_net(scenario, seed=4) for scenario in SCENARIOS}
    x = scenario_tasks("class")[0].test.tensors[0][:5]
    for net in nets.values():
        torch.testing.assert_close(net(x), nets["class"](x))
    assert nets["task"].all_logits(x).shape == (5, 10)
    assert nets["domain"].head.out_features == 2
