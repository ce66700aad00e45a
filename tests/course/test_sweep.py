"""A sweep against the runs that it stands for, one by one."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial

import forked
import numpy as np
import pytest
import torch

from ewc_tutorial.course.metrics import average_accuracy
from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.sweep import StackedMLP, SweepResult, lambda_sweep
from ewc_tutorial.course.sweep.result import MEMBER_ARRAYS
from ewc_tutorial.course.sweep.separate import train_each
from ewc_tutorial.course.sweep.stacked import Settings, train_stack
from ewc_tutorial.course.tasks import permuted_tasks, split_tasks
from ewc_tutorial.course.training import learn
from ewc_tutorial.curvature import KINDS
from ewc_tutorial.ewc import EWC, RULES

LAMBDAS = [0.0, 1.0, 100.0, 1e8]
HIDDEN = (12, 8)


@pytest.fixture(scope="module")
def tasks():
    return permuted_tasks(3, n_train=130, n_test=60)


sweep = partial(lambda_sweep, hidden=HIDDEN, steps=25, evaluations=3, progress=False, device="cpu")


@pytest.fixture(scope="module")
def result(tasks):
    return sweep(tasks, LAMBDAS, seeds=[0, 3])


def alone(tasks, lam, seed, optimizer=torch.optim.SGD, lr=0.1, **ewc_options):
    model = mlp(64, HIDDEN, 10, seed=seed)
    estimator = ewc_options.pop("estimator", "exact")
    n_samples = ewc_options.pop("n_samples", None)
    history = learn(
        model,
        tasks,
        EWC(model, lam, **ewc_options),
        steps=25,
        evaluations=3,
        seed=seed,
        lr=lr,
        optimizer=optimizer,
        estimator=estimator,
        n_samples=n_samples,
    )
    return model, history


def assert_same(member: SweepResult, history) -> None:
    assert member.steps.tolist() == history.steps.tolist()
    assert member.boundaries.tolist() == history.boundaries.tolist()
    np.testing.assert_allclose(member.curves[0, 0], history.curves, atol=1e-9)
    np.testing.assert_allclose(member.accuracy[0, 0], history.accuracy, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("seed", [0, 3])
def test_each_member_is_the_run_alone(tasks, result, lam, seed):
    _, history = alone(tasks, lam, seed)
    member = sweep(tasks, [lam], seeds=[seed])
    assert_same(member, history)
    i, j = LAMBDAS.index(lam), [0, 3].index(seed)
    np.testing.assert_allclose(result.curves[i, j], history.curves, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_for_every_rule(tasks, rule):
    options = {"rule": rule, "gamma": 0.5 if rule == "online" else 1.0}
    _, history = alone(tasks, 50.0, 0, **options)
    assert_same(sweep(tasks, [50.0], **options), history)


@pytest.mark.parametrize("estimator", ["sampled", "empirical", "batched"])
def test_for_other_estimators_and_subsets(tasks, estimator):
    options = {"estimator": estimator, "n_samples": 40}
    _, history = alone(tasks, 50.0, 1, **options)
    found = sweep(tasks, [0.5, 50.0], seeds=[0, 1], **options)
    np.testing.assert_allclose(found.curves[1, 1], history.curves, atol=1e-9)


def test_with_adam(tasks):
    _, history = alone(tasks, 50.0, 0, optimizer=torch.optim.Adam, lr=1e-2)
    assert_same(sweep(tasks, [50.0], optimizer="adam", lr=1e-2), history)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"curvature": "kronecker"},
        {"curvature": "kronecker", "rule": "online", "gamma": 0.5, "estimator": "sampled"},
        {"curvature": "kronecker", "rule": "average", "n_samples": 40, "optimizer": "adam"},
        {"curvature": "identity"},
    ],
)
def test_for_other_curvatures(tasks, options):
    lr = 1e-2 if "optimizer" in options else 0.1
    shares = []
    found = sweep(tasks, [0.5, 50.0], seeds=[0, 1], lr=lr, on_progress=shares.append, **options)
    optimizer = torch.optim.Adam if options.pop("optimizer", "") else torch.optim.SGD
    for (i, lam), seed in itertools.product(enumerate([0.5, 50.0]), [0, 1]):
        _, history = alone(tasks, lam, seed, optimizer=optimizer, lr=lr, **options)
        np.testing.assert_allclose(found.curves[i, seed], history.curves, atol=1e-9)
    assert found.steps.tolist() == history.steps.tolist()
    assert found.settings["rule"] == options.get("rule", KINDS[options["curvature"]].rules[0])
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    # What moved is measured as with the diagonal, and is the less the larger λ is.
    assert (found.fisher_drift[1, :, -1] < found.fisher_drift[0, :, -1]).all()
    assert not found.drift[:, :, 0].any()


@pytest.mark.slow
def test_separate_networks_tell_of_their_moves_what_the_stack_tells(tasks):
    """With the diagonal both are possible, and the same."""
    settings = sweep(tasks, [2.0, 30.0], seeds=[0, 1]).settings
    both = [
        train(tasks, [2.0, 30.0], [0, 1], Settings(**settings), "cpu")
        for train in (train_stack, train_each)
    ]
    for name in MEMBER_ARRAYS:
        np.testing.assert_allclose(
            *(getattr(one, name) for one in both), rtol=1e-3, atol=1e-6, err_msg=name
        )


def test_the_weights_agree_to_rounding(tasks):
    # The drift is a function of all weights: it shows differences that accuracies hide.
    lam = 20.0
    model = mlp(64, HIDDEN, 10, seed=0)
    ewc = EWC(model, lam)
    learn(model, tasks[:1], ewc, steps=25, lr=0.1)
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    fisher = {n: S.clone() for n, S in ewc.importance.items()}
    model, _ = alone(tasks, lam, 0)
    names = ["0.weight", "2.weight", "4.weight"]
    moved = dict(model.named_parameters())
    drift = [((moved[n] - first[n]).norm() / first[n].norm()).item() for n in names]
    weighted = sum((fisher[n] * (moved[n] - first[n]).square()).sum().item() for n in names)
    F = torch.cat([fisher[n].flatten() for n in names])
    squares = torch.cat([(moved[n] - first[n]).square().flatten() for n in names])
    important = F.argsort(descending=True)[: len(F) - round(0.9 * len(F))]
    found = sweep(tasks, [lam])
    np.testing.assert_allclose(found.drift[0, 0, -1], drift, rtol=1e-5)
    np.testing.assert_allclose(found.fisher_drift[0, 0, -1], weighted, rtol=1e-4)
    np.testing.assert_allclose(
        found.important_move[0, 0, -1], squares[important].mean().sqrt().item(), rtol=1e-4
    )


def test_every_lambda_is_finite_and_the_strongest_hardly_moves_what_matters(result):
    assert all(np.isfinite(getattr(result, name)).all() for name in MEMBER_ARRAYS)
    last = result.fisher_drift[:, :, -1].mean(axis=1)
    assert last[-1] < 1e-6 * last[0]


def test_what_it_says_of_itself(result, tasks):
    assert result.curves.shape == (4, 2, len(result.steps), 3)
    assert result.bayes_lambda == 1.0
    expected = [[average_accuracy(R) for R in row] for row in result.accuracy]
    np.testing.assert_allclose(result.average_accuracy, expected)
    np.testing.assert_allclose(
        (2 * result.old_accuracy + result.new_accuracy) / 3, result.average_accuracy
    )
    assert result.best_lambda == LAMBDAS[int(np.argmax(result.average_accuracy.mean(1)))]
    frame = result.to_frame()
    assert list(frame.columns) == ["lam", "seed", "step", "task", "accuracy", "seen"]
    assert len(frame) == result.curves.size
    row = frame.query("lam == 100 and seed == 3 and task == 'B' and step == 75")
    assert row.accuracy.item() == result.accuracy[2, 1, 2, 1]
    assert not frame.query("task == 'C' and step == 50").seen.any()


def test_one_task_is_what_it_is_alone_whatever_lambda(tasks):
    _, history = alone(tasks[:1], 0.0, 0)
    found = sweep(tasks[:1], LAMBDAS)
    for member in found.curves[:, 0]:
        np.testing.assert_allclose(member, history.curves, atol=1e-9)
    assert (found.drift == 0).all()


def test_split_tasks_of_unequal_size():
    tasks = split_tasks(2, n_train=151, n_test=50)
    found = sweep(tasks, [1.0])
    assert found.bayes_lambda == len(tasks[0].train) / len(tasks[1].train)


def test_the_written_out_gradient_is_autograds():
    g = torch.Generator().manual_seed(0)
    members = [mlp(5, [4, 3], 3, seed=s).double() for s in range(6)]
    stack = StackedMLP(members)
    x = torch.randn(2, 7, 5, generator=g, dtype=torch.float64)  # members 0-2 and 3-5 share inputs
    y = torch.randint(3, (2, 7), generator=g)
    stack.set_gradients_(x, y)
    for m, member in enumerate(members):
        torch.nn.functional.cross_entropy(member(x[m // 3]), y[m // 3]).backward()
        for i, layer in enumerate((member[0], member[2], member[4])):
            torch.testing.assert_close(stack.weights[i].grad[m], layer.weight.grad)
            torch.testing.assert_close(stack.biases[i].grad[m, 0], layer.bias.grad)


# --- between the grid -------------------------------------------------------------------------


def test_interpolation_says_that_it_is_one(result):
    on = result.at(100.0)
    assert not on.interpolated
    assert np.array_equal(on.curves[0], result.curves[2])
    between = result.at(10.0)
    assert between.interpolated
    np.testing.assert_allclose(between.curves[0], (result.curves[1] + result.curves[2]) / 2)
    low = result.at(0.25)
    np.testing.assert_allclose(low.curves[0], 0.75 * result.curves[0] + 0.25 * result.curves[1])
    for outside in (-1.0, 1e9, float("nan")):
        with pytest.raises(ValueError, match="lam must be between 0 and 1e"):
            result.at(outside)


# --- files ------------------------------------------------------------------------------------


def test_save_and_load(result, tmp_path):
    result.save(tmp_path / "sweep.npz")
    loaded = SweepResult.load(tmp_path / "sweep.npz")
    for name in ("lambdas", "seeds", "steps", "boundaries", "n_train", *MEMBER_ARRAYS):
        assert np.array_equal(getattr(loaded, name), getattr(result, name)), name
    assert loaded.tasks == result.tasks
    assert loaded.settings["hidden"] == list(HIDDEN)
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.npz"]


def test_a_write_that_breaks_off_leaves_the_old_file(result, tmp_path, monkeypatch):
    def full_disk(file, **_arrays):
        file.write(b"PK half of it")
        raise OSError("no space left on device")

    result.save(tmp_path / "sweep.npz")
    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="no space"):
        result.save(tmp_path / "sweep.npz")
    assert np.array_equal(SweepResult.load(tmp_path / "sweep.npz").curves, result.curves)


def test_a_file_of_version_0_1_had_tasks_before_evaluations(result, tmp_path):
    result.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        arrays = dict(file)
    old = arrays | {"curves": result.curves.swapaxes(-1, -2), "accuracy": result.accuracy}
    np.savez(tmp_path / "old.npz", **old)
    assert np.array_equal(SweepResult.load(tmp_path / "old.npz").curves, result.curves)


def test_another_file_is_refused(tmp_path):
    for content in (b"", b"nonsense", b"PK\x03\x04 broken"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match="does not hold a sweep"):
            SweepResult.load(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError):
        SweepResult.load(tmp_path / "missing.npz")


class InterruptedSweepError(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_sweep_resumes_where_it_was(tasks, result, tmp_path):
    def stop_in_the_third_shard(share: float) -> None:
        if share > 0.6:
            raise InterruptedSweepError

    options = {"seeds": [0, 3], "folder": tmp_path, "shard_size": 2}
    with pytest.raises(InterruptedSweepError):
        sweep(tasks, LAMBDAS, on_progress=stop_in_the_third_shard, **options)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert len(kept) == 2
    shares: list[float] = []
    whole = sweep(tasks, LAMBDAS, on_progress=shares.append, **options)
    assert shares[0] == 0.5
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    np.testing.assert_allclose(whole.curves, result.curves, atol=1e-9)
    sweep(tasks, LAMBDAS, **{**options, "rule": "latest"})
    assert len(list(tmp_path.iterdir())) == 8, "other settings are other shards"


# --- executors --------------------------------------------------------------------------------


@pytest.mark.slow
def test_shards_on_a_process_pool_give_the_same(tasks, result):
    context = multiprocessing.get_context(forked.METHOD)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = sweep(tasks, LAMBDAS, seeds=[0, 3], executor=pool)
    np.testing.assert_allclose(found.curves, result.curves, atol=1e-9)
    np.testing.assert_allclose(found.drift, result.drift, rtol=1e-4)


FORKED = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import torch
from ewc_tutorial.course.sweep import lambda_sweep
from ewc_tutorial.course.tasks import permuted_tasks

torch.set_num_threads(2)
options = {"hidden": [12], "steps": 5, "evaluations": 1, "progress": False, "device": "cpu"}
tasks = permuted_tasks(2, n_train=400, n_test=60)
here = lambda_sweep(tasks, [0.0, 1.0], **options)
(torch.ones(500, 500) @ torch.ones(500, 500)).sum()  # both threads have worked
with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
    there = lambda_sweep(tasks, [0.0, 1.0], executor=pool, **options)
assert abs(here.curves - there.curves).max() < 1e-6
"""


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_pool_comes_back():
    # Only a process of its own has used several threads before; if it hangs, so does its pool.
    process = forked.popen([sys.executable, "-c", FORKED], "ipykernel_launcher")
    try:
        assert process.wait(120) == 0
    finally:
        process.kill()


class LosesItsSecondWorker(Executor):
    """Runs what is submitted at once; the second call dies as a killed process would."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, fn, /, *args, **kwargs):
        from concurrent.futures.process import BrokenProcessPool

        self.calls += 1
        future: Future = Future()
        if self.calls == 2:
            future.set_exception(BrokenProcessPool("a process was terminated abruptly"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_a_lost_worker_loses_nothing(tasks, result, tmp_path):
    with pytest.warns(RuntimeWarning, match="A worker was lost"):
        found = sweep(
            tasks, LAMBDAS, seeds=[0, 3], executor=LosesItsSecondWorker(), folder=tmp_path
        )
    np.testing.assert_allclose(found.curves, result.curves, atol=1e-9)
    assert len(list(tmp_path.iterdir())) == 2


def die(*_args: object) -> None:
    os._exit(1)


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tasks, result):
    context = multiprocessing.get_context(forked.METHOD)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(die)
        with pytest.warns(RuntimeWarning, match="lost"):
            found = sweep(tasks, LAMBDAS, seeds=[0, 3], executor=pool)
    np.testing.assert_allclose(found.curves, result.curves, atol=1e-9)


@pytest.mark.slow
def test_dask_runs_the_shards(tasks, result):
    distributed = pytest.importorskip("distributed", reason="the group 'cluster' is not installed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = sweep(tasks, LAMBDAS, seeds=[0, 3], executor=client.get_executor())
    np.testing.assert_allclose(found.curves, result.curves, atol=1e-9)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lambdas": []}, "lambdas must hold at least one value"),
        ({"lambdas": [1, -1]}, "lambdas must be finite and not negative, not -1.0"),
        ({"lambdas": [float("inf")]}, "lambdas must be finite"),
        ({"seeds": []}, "seeds must hold at least one value"),
        ({"hidden": ()}, "hidden must hold at least one value"),
        ({"lr": 0.0}, "lr must be a finite positive number, not 0.0"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of sgd, adam, not 'lbfgs'"),
        ({"rule": "sum"}, "rule must be one of"),
        ({"curvature": "full"}, "curvature must be one of diagonal, kronecker, identity, compact"),
        ({"curvature": "kronecker", "rule": "separate"}, "rule must be one of latest, online"),
        ({"curvature": "kronecker", "estimator": "batched"}, "'batched' has no Kronecker factors"),
        ({"estimator": "true"}, "estimator must be one of"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
        ({"tasks": []}, "tasks must hold at least one task"),
        ({"tasks": permuted_tasks(1, flatten=False)}, r"flat inputs \(N, D\)"),
    ],
)
def test_bad_arguments_are_named(tasks, options, words):
    arguments = {"tasks": tasks, "lambdas": [1.0], **options}
    with pytest.raises(ValueError, match=words):
        sweep(**arguments)


def test_divergence_says_so(tasks):
    with pytest.raises(ValueError, match=r"lr=1e\+20 made weights that are not finite"):
        sweep(tasks, [1.0], lr=1e20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_nearly_the_same(tasks, result):
    found = sweep(tasks, LAMBDAS, seeds=[0, 3], device="cuda")
    assert np.abs(found.average_accuracy - result.average_accuracy).max() < 0.05
