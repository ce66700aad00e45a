"""Unlearning against brute force: an EWC that never met the task, and sums written out."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from kronecker_oracle import random_factors
from torch import nn

from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.scenarios import grow_linear
from ewc_tutorial.course.tasks import split_tasks
from ewc_tutorial.course.training import train
from ewc_tutorial.curvature import Diagonal, Kronecker
from ewc_tutorial.ewc import EWC, L2, RULES
from ewc_tutorial.unlearning import TaskMemory, records


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return mlp(3, [4], 2, activation=nn.Tanh, seed=seed).to(dtype)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def move(model: nn.Module, seed: int) -> None:
    """Steps of very different sizes, some weights unmoved."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            scale = 10 ** (6 * torch.rand(p.shape, generator=g) - 4)
            scale[torch.rand(p.shape, generator=g) < 0.2] = 0
            p.add_(scale.to(p) * torch.randn(p.shape, generator=g).to(p))


#: The curvatures, each with the rules that it has.
KINDS = [(kind.name, rule) for kind in (Diagonal, Kronecker) for rule in kind.rules]


def random_of(ewc: EWC, seed: int) -> dict[str, torch.Tensor]:
    """Return a random Fisher information in the form that the EWC takes."""
    if ewc.curvature == "diagonal":
        return random_fisher(ewc.model, seed)
    dtype = next(iter(ewc.anchor.values())).dtype
    return {n: F.to(dtype) for n, F in random_factors(ewc.shapes(), seed).items()}


def random_fisher(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    fisher = {}
    for name, p in model.named_parameters():
        F = 10 ** (4 * torch.rand(p.shape, generator=g) - 3)
        F[torch.rand(p.shape, generator=g) < 0.3] = 0
        fisher[name] = F.to(p.dtype)
    return fisher


WEIGHTS = (1.0, 2.5, 0.5, 1.0)


def learned(
    rule="separate",
    n_tasks=4,
    folder=None,
    dtype=torch.float32,
    gamma=None,
    curvature="diagonal",
):
    """Return a memory of random tasks "0", "1", … and the weights after each, θ_0 first."""
    model = network(dtype=dtype)
    gamma = gamma or (0.7 if rule == "online" else 1.0)
    memory = TaskMemory(EWC(model, 3.0, rule, gamma, curvature=curvature), folder)
    path = [snapshot(model)]
    for t in range(n_tasks):
        memory.begin(str(t))
        move(model, seed=10 + t)
        memory.merge(random_of(memory.ewc, seed=t), WEIGHTS[t])
        path.append(snapshot(model))
    return memory, path


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state_equal(a: EWC, b: EWC) -> bool:
    tensors = dict(a.named_buffers()), dict(b.named_buffers())
    return same(*tensors) and a.get_extra_state() == b.get_extra_state()


# --- the weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_forgetting_the_last_task_restores_the_earlier_weights_bit_for_bit(dtype):
    memory, path = learned(dtype=dtype)
    memory.forget("3")
    assert same(snapshot(memory.ewc.model), path[3])


@pytest.mark.parametrize("order", ["0123", "3210", "2031", "1320"])
def test_forgetting_all_tasks_in_any_order_gives_the_untrained_model_bit_for_bit(order):
    memory, path = learned()
    for task in order:
        memory.forget(task)
    assert same(snapshot(memory.ewc.model), path[0])
    assert memory.tasks == ()
    assert memory.forgotten == tuple(order)
    assert memory.ewc.penalty().item() == 0


@pytest.mark.parametrize("task", range(4))
def test_the_weights_are_those_less_the_update(task):
    memory, path = learned(dtype=torch.float64)
    memory.forget(str(task))
    for name, p in memory.ewc.model.named_parameters():
        expected = path[4][name] - (path[task + 1][name] - path[task][name])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_head_that_is_frozen_after_its_task_is_unlearned_and_restored_too(in_folder, tmp_path):
    """A trunk with a head of its own per task, each frozen once its task is over."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(3, 4), "A": nn.Linear(4, 2), "B": nn.Linear(4, 2)})
    memory = TaskMemory(EWC(model, include="trunk.*"), tmp_path if in_folder else None)
    path = [snapshot(model)]
    for task, other in ("AB", "BA"):
        model[other].requires_grad_(False)
        model[task].requires_grad_(True)
        memory.begin(task)
        for seed, part in enumerate(("trunk", task)):
            move(model[part], seed=seed + ord(task))
        memory.merge(random_fisher(model, seed=ord(task)))
        model[task].requires_grad_(False)
        path.append(snapshot(model))
    if in_folder:
        again = nn.ModuleDict({name: nn.Linear(*reversed(p.weight.shape))
                               for name, p in model.items()})  # fmt: skip
        memory = TaskMemory.load(EWC(again, include="trunk.*"), tmp_path)
        again["A"].requires_grad_(False)
        again["B"].requires_grad_(False)
        assert same(snapshot(again), path[2])
    for task, before in (("B", path[1]), ("A", path[0])):
        memory.forget(task)
        assert same(snapshot(memory.ewc.model), before)


def test_a_tasks_update_is_the_sum_of_its_steps_proximal_ones_included():
    task = split_tasks(5, relabel=True, n_train=200, n_test=100)[0]
    model = mlp(64, [5], 2, seed=0)
    ewc = EWC(model, lam=100.0)
    memory = TaskMemory(ewc)
    memory.begin("first")
    train(model, task, steps=5)
    memory.consolidate(task)
    steps = [snapshot(model)]
    memory.begin("second")
    train(model, task, steps=7, ewc=ewc, on_step=lambda _: steps.append(snapshot(model)))
    memory.consolidate(task)
    assert len(steps) == 8
    for name, update in memory["second"].update.items():
        total = sum((b[name].double() - a[name].double()) for a, b in itertools.pairwise(steps))
        torch.testing.assert_close(update, total, rtol=1e-9, atol=1e-12)


def test_parameters_that_ewc_leaves_out_are_unlearned_too():
    model = network()
    memory = TaskMemory(EWC(model, exclude="2.*"))
    before = snapshot(model)
    memory.begin("A")
    move(model, 1)
    memory.merge(random_fisher(model, 1))
    memory.forget("A")
    assert same(snapshot(model), before)


# --- EWC's memory ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("curvature", "rule"), KINDS)
@pytest.mark.parametrize("task", range(4))
@pytest.mark.parametrize("shift", [False, True])
def test_the_ewc_is_that_which_never_met_the_task(curvature, rule, task, shift):
    memory, path = learned(rule, curvature=curvature)
    memory.forget(str(task), shift_anchors=shift)
    other = network()
    never = EWC(other, 3.0, rule, memory.ewc.gamma, curvature=curvature)
    for t in (t for t in range(4) if t != task):
        with torch.no_grad():
            for name, p in other.named_parameters():
                anchor = path[t + 1][name].double()
                if shift and t > task:
                    anchor = anchor - (path[task + 1][name].double() - path[task][name].double())
                p.copy_(anchor.float())
        never.merge(random_of(never, seed=t), WEIGHTS[t])
    expected = dict(never.named_buffers())
    for name, kept in memory.ewc.named_buffers():
        if name.startswith("anchor"):
            torch.testing.assert_close(kept, expected[name], rtol=1e-6, atol=1e-5)
        else:
            assert torch.equal(kept, expected[name]), name
    assert memory.ewc.n_tasks == 3
    numbers, others = memory.ewc.get_extra_state(), never.get_extra_state()
    for part in ("total_weight", "weight_by_layer", "met_by_layer", "strength_by_layer"):
        assert numbers.get(part) == others.get(part)


def weights_of(rule, kept):
    """Return what each of the kept tasks weighs."""
    return {
        "separate": [WEIGHTS[t] for t in kept],
        "latest": [WEIGHTS[t] for t in kept],
        "online": [WEIGHTS[t] * 0.7 ** (len(kept) - 1 - i) for i, t in enumerate(kept)],
        "average": [WEIGHTS[t] / sum(WEIGHTS[k] for k in kept) for t in kept],
    }[rule]


@pytest.mark.parametrize("rule", Kronecker.rules)
@pytest.mark.parametrize("task", range(4))
def test_the_penalty_is_that_of_the_kept_tasks_summed_factors(rule, task):
    memory, path = learned(rule, dtype=torch.float64, curvature="kronecker")
    fishers = [random_of(memory.ewc, seed=t) for t in range(4)]
    memory.forget(str(task), shift_anchors=False)
    kept = [t for t in range(4) if t != task]
    weights, theta, total = weights_of(rule, kept), snapshot(memory.ewc.model), 0.0
    away = {name: theta[name] - path[kept[-1] + 1][name] for name in theta}
    for layer in "02":
        A, G = (
            sum(
                w * fishers[t][f"{layer}.weight:{kind}"] for w, t in zip(weights, kept, strict=True)
            )
            for kind in "AG"
        )
        delta = torch.cat([away[f"{layer}.weight"], away[f"{layer}.bias"].unsqueeze(1)], 1)
        total += delta.flatten() @ torch.kron(G, A) @ delta.flatten() / sum(weights)
    assert memory.ewc.penalty().item() == pytest.approx(1.5 * total.item(), rel=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("task", range(4))
def test_the_penalty_is_the_definition_with_the_kept_tasks_quadratics(rule, task):
    memory, path = learned(rule, dtype=torch.float64)
    fishers = [random_fisher(memory.ewc.model, seed=t) for t in range(4)]
    memory.forget(str(task), shift_anchors=False)
    kept = [t for t in range(4) if t != task]
    theta, total = snapshot(memory.ewc.model), 0.0
    for weight, t in zip(weights_of(rule, kept), kept, strict=True):
        center = path[t + 1] if rule == "separate" else path[kept[-1] + 1]
        for name, F in fishers[t].items():
            total += weight * (F * (theta[name] - center[name]) ** 2).sum().item()
    assert memory.ewc.penalty().item() == pytest.approx(1.5 * total, rel=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_a_merge_at_given_weights_is_a_merge_there(rule):
    model = network()
    ewcs = [EWC(model, rule=rule) for _ in range(2)]
    for seed in (1, 2):
        move(model, seed)
        ewcs[0].merge(random_fisher(model, seed))
        there = snapshot(model)
        move(model, seed + 10)
        ewcs[1].merge(random_fisher(model, seed), at=there)
    assert state_equal(*ewcs)
    with pytest.raises(ValueError, match="at has no entry for '0.weight'"):
        ewcs[0].merge(random_fisher(model, 1), at={})
    there["0.bias"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"at\['0.bias'\] has shape \(1,\), but the parameter"):
        ewcs[0].merge(random_fisher(model, 1), at=there)
    assert state_equal(*ewcs)


def test_an_ewc_that_was_reset_is_a_new_one():
    model = network()
    ewc = EWC(model, lam=2.0)
    ewc.merge(random_fisher(model, 1))
    move(model, 1)
    ewc.proximal_step_(0.1)
    ewc.reset()
    assert state_equal(ewc, EWC(model, lam=2.0))
    before = snapshot(model)
    ewc.proximal_step_(0.1)
    assert same(snapshot(model), before)


def test_forgetting_twice_in_a_row_is_forgetting_both_in_the_other_order():
    one, _ = learned(dtype=torch.float64)
    other, _ = learned(dtype=torch.float64)
    for task in "02":
        one.forget(task)
    for task in "20":
        other.forget(task)
    for name, p in one.ewc.model.named_parameters():
        q = other.ewc.model.get_parameter(name)
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(one.ewc.anchor[name], other.ewc.anchor[name])


def test_learning_goes_on_after_forgetting():
    memory, _ = learned()
    memory.forget("1")
    memory.begin("new")
    move(memory.ewc.model, 77)
    memory.merge(random_fisher(memory.ewc.model, 77))
    assert memory.tasks == ("0", "2", "3", "new")
    assert memory.ewc.n_tasks == 4


def test_l2_can_forget_too():
    model = network()
    ewc = L2(model, lam=2.0)
    memory = TaskMemory(ewc)
    before = snapshot(model)
    memory.begin("A")
    move(model, 1)
    memory.merge({name: torch.ones_like(p) for name, p in model.named_parameters()})
    memory.forget("A")
    assert same(snapshot(model), before)
    assert ewc.penalty().item() == 0


def grown_head(curvature: str, rule: str):
    """Two tasks on a head of 2, then of 4 rows; return memory and the weights on the way."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    memory = TaskMemory(EWC(model, rule=rule, curvature=curvature))
    path = []
    for t in range(2):
        if t:
            model[1] = grow_linear(model[1], torch.ones(2, 4), torch.ones(2))
            memory.ewc.grow_()
        path.append(snapshot(model))
        memory.begin(str(t))
        move(model, t)
        memory.merge(random_of(memory.ewc, t))
        path.append(snapshot(model))
    return memory, path


@pytest.mark.parametrize(("curvature", "rule"), KINDS)
def test_a_head_that_has_grown(curvature, rule):
    memory, path = grown_head(curvature, rule)
    memory.forget("1")
    assert same(snapshot(memory.ewc.model), path[2])  # the fresh rows are back

    memory, path = grown_head(curvature, rule)
    memory.forget("0")
    model = memory.ewc.model
    rows = model[1].weight[:2] - (path[3]["1.weight"][:2] - path[1]["1.weight"])
    torch.testing.assert_close(rows, path[0]["1.weight"], rtol=1e-5, atol=1e-3)
    # Task 0 has not moved the rows that came later.
    assert torch.equal(model[1].weight[2:], path[3]["1.weight"][2:])
    only = EWC(model, rule=rule, curvature=curvature)
    only.merge(random_of(only, 1))
    assert same(memory.ewc.importance, only.importance)


# --- nothing half changed -------------------------------------------------------------------


def everything(memory):
    ewc = memory.ewc
    tensors = [*snapshot(ewc.model).values(), *(b.clone() for b in ewc.buffers())]
    return tensors, ewc.get_extra_state(), memory.tasks, memory.forgotten


def assert_unchanged(before, memory):
    now = everything(memory)
    assert all(torch.equal(a, b) for a, b in zip(before[0], now[0], strict=True))
    assert before[1:] == now[1:]


def test_unknown_and_forgotten_tasks():
    memory, _ = learned()
    memory.forget("1")
    state = everything(memory)
    with pytest.raises(KeyError, match=r"Task '7' is not recorded; there are '0', '2', '3'\."):
        memory.forget("7")
    with pytest.raises(KeyError, match="Task '1' was forgotten already"):
        memory.forget("1")
    with pytest.raises(ValueError, match="task must be a new name, not '1'"):
        memory.begin("1")
    assert_unchanged(state, memory)


def test_the_order_of_calls():
    memory, path = learned(n_tasks=2)
    with pytest.raises(RuntimeError, match="No task has begun"):
        memory.merge({})
    memory.begin("A")
    for call in (lambda: memory.begin("B"), lambda: memory.forget("0")):
        with pytest.raises(RuntimeError, match="Task 'A' has begun"):
            call()
    move(memory.ewc.model, 5)
    memory.abandon()
    assert same(snapshot(memory.ewc.model), path[2])
    memory.begin("A")  # the name is free again
    memory.abandon()
    with pytest.raises(ValueError, match="task must be a new name, not 3"):
        memory.begin(3)


def test_a_merge_past_the_memory_is_noticed():
    memory, _ = learned(n_tasks=2)
    memory.ewc.merge(random_fisher(memory.ewc.model, 9))
    with pytest.raises(RuntimeError, match="ewc has 3 tasks, but 2 are recorded"):
        memory.forget("0")
    with pytest.raises(ValueError, match="consolidated 3 task"):
        TaskMemory(memory.ewc)


def test_a_fisher_that_is_not_finite_leaves_everything_as_it_was():
    memory, _ = learned(n_tasks=2)
    memory.begin("bad")
    state = everything(memory)
    fisher = random_fisher(memory.ewc.model, 3)
    fisher["2.bias"][0] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        memory.merge(fisher)
    assert_unchanged(state, memory)
    memory.merge(random_fisher(memory.ewc.model, 3))  # the task is still open


def test_running_statistics_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"Layer '1' \(BatchNorm1d\) keeps running statistics"):
        TaskMemory(EWC(model))


def test_a_parameter_that_changes_shape_in_a_task():
    memory, _ = grown_head("diagonal", "separate")
    model = memory.ewc.model
    memory.begin("A")
    model[1] = grow_linear(model[1], torch.ones(1, 4), torch.ones(1))
    memory.ewc.grow_()
    with pytest.raises(RuntimeError, match=r"is not what it was at begin\('A'\)"):
        memory.merge(random_fisher(model, 0))


# --- the folder -----------------------------------------------------------------------------


@pytest.mark.parametrize(("curvature", "rule"), KINDS)
def test_a_folder_does_what_main_memory_does_and_survives_a_restart(curvature, rule, tmp_path):
    in_memory, _ = learned(rule, curvature=curvature)
    on_disk, _ = learned(rule, folder=tmp_path, curvature=curvature)
    assert state_equal(in_memory.ewc, on_disk.ewc)
    for task in "13":
        new = EWC(network(seed=5), 3.0, rule, in_memory.ewc.gamma, curvature=curvature)
        again = TaskMemory.load(new, tmp_path)
        assert same(snapshot(again.ewc.model), snapshot(in_memory.ewc.model))
        in_memory.forget(task)
        again.forget(task)
        assert again.tasks == in_memory.tasks
        assert again.forgotten == in_memory.forgotten
        assert same(snapshot(again.ewc.model), snapshot(in_memory.ewc.model))
        assert state_equal(in_memory.ewc, again.ewc)


def test_nothing_of_a_forgotten_task_stays_in_the_folder(tmp_path):
    memory, _ = learned(folder=tmp_path)
    update = memory["1"].update["0.weight"].float()
    fisher = memory["1"].fisher["0.weight"]
    memory.forget("1")
    files = sorted(tmp_path.glob("*"))
    assert len(files) == 5  # three tasks, the weights and the manifest
    tensors = [
        value
        for path in files
        if path.suffix == ".pt"
        for part in torch.load(path).values()
        for value in (part.values() if isinstance(part, dict) else [part])
        if isinstance(value, torch.Tensor) and value.shape == update.shape
    ]
    assert len(tensors) == 10
    assert not any(torch.equal(t, update) or torch.equal(t, fisher) for t in tensors)


def test_a_crash_before_the_manifest_is_replaced_changes_nothing(tmp_path, monkeypatch):
    memory, _ = learned(folder=tmp_path)
    state, files = everything(memory), sorted(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.files, "replace_file", full)
    with pytest.raises(OSError, match="No space left"):
        memory.forget("1")
    assert_unchanged(state, memory)
    assert sorted(tmp_path.iterdir()) == files
    memory.begin("A")
    with pytest.raises(OSError, match="No space left"):
        memory.merge(random_fisher(memory.ewc.model, 3))
    assert_unchanged(state, memory)
    monkeypatch.undo()
    memory.abandon()
    memory.forget("1")
    assert memory.tasks == ("0", "2", "3")


KILLED = """
import os
from torch import nn
from ewc_tutorial import EWC
from ewc_tutorial.unlearning import TaskMemory, records
network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
memory = TaskMemory.load(EWC(network, 3.0), {folder!r})
{patch}
memory.forget("1")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "kept"),
    [
        ("records.files.replace_file = lambda *_: os._exit(9)", "0 1 2 3"),
        ("records.FolderRecords._sweep = lambda _: os._exit(9)", "0 2 3"),
    ],
    ids=["before the manifest", "after it"],
)
def test_a_killed_process_leaves_the_state_before_or_after(tmp_path, patch, kept):
    memory, _ = learned(folder=tmp_path)
    expected = learned()[0]
    if kept == "0 2 3":
        expected.forget("1")
    script = KILLED.format(folder=str(tmp_path), patch=patch)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert len(list(tmp_path.glob("*.pt"))) > len(memory.tasks) + 1  # it died in the middle
    again = TaskMemory.load(EWC(network(seed=3), 3.0), tmp_path)
    assert again.tasks == tuple(kept.split())
    assert same(snapshot(again.ewc.model), snapshot(expected.ewc.model))
    assert state_equal(again.ewc, expected.ewc)
    assert len(list(tmp_path.glob("*.pt"))) == len(again.tasks) + 1  # swept


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="has no records"):
        TaskMemory.load(EWC(network()), tmp_path)
    learned(folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds the records of '0', '1', '2', '3': continue"):
        TaskMemory(EWC(network()), tmp_path)
    with pytest.raises(ValueError, match=r"'0.weight' of shape \(4, 3\), but in the model"):
        TaskMemory.load(EWC(mlp(3, [5], 2)), tmp_path)
    with pytest.raises(ValueError, match=r"protect other parameters than this EWC: 2\.bias"):
        TaskMemory.load(EWC(network(), exclude="2.bias"), tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match=r"no manifest of version 1 \(version 99\)"):
        TaskMemory.load(EWC(network()), tmp_path)


def test_a_loaded_memory_may_take_another_rule(tmp_path):
    learned("separate", folder=tmp_path)
    expected, _ = learned("latest")
    loaded = TaskMemory.load(EWC(network(), 3.0, "latest"), tmp_path)
    assert state_equal(loaded.ewc, expected.ewc)


def test_records_of_another_curvature_are_refused(tmp_path):
    learned(folder=tmp_path)
    model = network(seed=4)
    before = snapshot(model)
    with pytest.raises(ValueError, match="protect other parameters .*0.weight:A"):
        TaskMemory.load(EWC(model, curvature="kronecker"), tmp_path)
    assert same(snapshot(model), before)


def test_the_size_of_a_record():
    memory, _ = learned()
    n = sum(p.numel() for p in memory.ewc.model.parameters())
    assert memory["0"].n_bytes == 3 * 4 * n
