"""choose_lambda against brute force where the best λ is known, and what it says when it is not."""

from __future__ import annotations

import csv
import math
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ewc_tutorial import EWC, choose_lambda
from ewc_tutorial.choice import predicted_rise, softness
from ewc_tutorial.choice.rules import student_tail

# One weight w. The old loss is A w²/2 with its optimum at 0, the new one (w − 1)²/2, the spring is
# S w²/2: training with λ ends at w = 1 / (1 + λS). The sum of both losses is least where λS = A.


def end_of_training(lam, S=1.0):
    return 1 / (1 + lam * S)


def old_loss(w, A):
    return A * w**2 / 2


def new_loss(w):
    return (w - 1) ** 2 / 2


def train(lam, seed, S=1.0, noise=0.0):
    """Return w and two disturbances of the losses."""
    drawn = np.random.default_rng([seed, round(lam * 1e6)]).normal(size=2)
    return end_of_training(lam, S), *(noise * drawn)


def old_of(A):
    return lambda model: old_loss(model[0], A) + model[1]


def new(model):
    return new_loss(model[0]) + model[2]


def choose(A=10.0, S=1.0, noise=0.0, budget=40, old=None, **options):
    return choose_lambda(
        partial(train, S=S, noise=noise),
        new,
        old or old_of(A),
        budget=budget,
        lower_is_better=True,
        **options,
    )


def brute_force(lams, A, S=1.0):
    """Return which of the values is really the best."""
    w = end_of_training(np.asarray(lams), S)
    return lams[np.argmin(old_loss(w, A) + new_loss(w))]


@pytest.mark.parametrize(
    ("A", "S"), [(10.0, 1.0), (0.5, 1.0), (300.0, 1.0), (3.0, 0.01), (1e-3, 1.0), (2.0, 100.0)]
)
def test_it_finds_the_best_lambda_also_beyond_the_grid(A, S):
    found = choose(A, S)
    lams = list(found.curves["score"].lams)
    assert found.sure
    assert found.lam == brute_force(lams, A, S)
    assert found.lam == pytest.approx(brute_force(np.geomspace(1e-5, 1e5, 21), A, S), rel=5e-3)
    assert 10**-0.5 < found.lam / (A / S) < 10**0.5
    assert lams.index(found.lam) not in (0, len(lams) - 1)


def test_the_curves_are_means_and_standard_errors():
    found = choose(noise=0.1)
    runs = [run for run in found.runs if run.lam == found.lam]
    values = [(run.old + run.new) / 2 for run in runs]
    curve = found.curves["score"]
    i = list(curve.lams).index(found.lam)
    assert curve.n[i] == len(runs) > 2
    assert curve.mean[i] == pytest.approx(np.mean(values))
    assert curve.error[i] == pytest.approx(np.std(values, ddof=1) / len(runs) ** 0.5)
    assert len(found.runs) <= 40
    assert len({(run.lam, run.seed) for run in found.runs}) == len(found.runs)


def test_of_noisy_trainings_it_says_that_it_is_not_sure():
    found = choose(noise=0.3)
    assert not found.sure
    assert "That is not sure" in found.sentence
    for lam in found.unclear:
        assert f"{lam:.3g}" in found.sentence


def test_the_truly_best_is_among_those_that_cannot_be_told_apart():
    covered, wrong, n = 0, 0, 60
    for k in range(n):
        found = choose(noise=0.1, budget=25, first_seed=100 * k)
        truth = brute_force(list(found.curves["score"].lams), 10.0)
        covered += truth in (found.lam, *found.unclear)
        wrong += found.sure and found.lam != truth
    assert covered >= 0.93 * n  # promised are 95 %
    assert wrong <= 0.05 * n


def test_more_seeds_go_to_the_better_half():
    found = choose(noise=0.1, budget=60)
    n = dict(zip(found.curves["score"].lams, found.curves["score"].n, strict=True))
    assert n[0.0] == 2
    assert n[found.lam] == max(n.values()) >= 8


def test_one_seed_each_says_nothing():
    found = choose(budget=6, softness=10)
    assert not found.sure
    assert "nothing can be said" in found.sentence


def test_an_edge_that_the_budget_cannot_pass_is_named():
    found = choose(A=1e5, budget=12)
    assert found.lam == max(found.curves["score"].lams)
    assert not found.sure
    assert "beyond the grid" in found.sentence


def test_where_nothing_is_forgotten_no_penalty_is_best():
    def nothing_forgotten(lam, seed):
        return new_loss(end_of_training(lam)) + 1e-3 * np.random.default_rng(seed).normal()

    found = choose_lambda(
        nothing_forgotten, float, lambda model: 0.0, budget=60, lower_is_better=True
    )
    assert found.lam < 0.01
    if found.lam == 0:
        assert "No λ above zero scores higher" in found.sentence


def test_bayes_and_softness_say_where_the_grid_begins():
    tried = []

    def watched(lam, seed):
        tried.append(lam)
        return train(lam, seed)

    options = {"budget": 30, "lower_is_better": True, "bayes": 4.0, "softness": 80.0, "factor": 3.0}
    choose_lambda(watched, new, old_of(100.0), **options)
    assert min(lam for lam in tried if lam) == pytest.approx(4 / 3, rel=1e-2)
    assert max(tried) >= 4 * 80
    assert 0.0 in tried


def test_accuracies_are_high_for_better_and_can_be_combined_otherwise():
    def score(lam, seed):
        return lam

    kept = lambda lam: min(1.0, 0.5 + 0.1 * lam)  # noqa: E731
    learned = lambda lam: 1 - lam / 100  # noqa: E731
    assert choose_lambda(score, learned, kept, budget=40).lam == 10
    weighted = choose_lambda(
        score, learned, kept, budget=40, combine=lambda old, new: 0.001 * old + new
    )
    assert weighted.lam < 0.1


def test_a_training_that_diverged_is_never_the_best():
    def explodes(lam, seed):
        return (math.nan, 0, 0) if lam > 50 else train(lam, seed)

    found = choose_lambda(explodes, new, old_of(1e4), budget=40, lower_is_better=True)
    assert found.lam == 31.6
    assert "diverged at λ = 100" in found.sentence
    with pytest.raises(RuntimeError, match="Every training diverged"):
        choose_lambda(lambda lam, seed: (math.nan,) * 3, new, old_of(1.0), budget=20)


# --- without old data ---------------------------------------------------------------------------


def test_without_old_data_the_largest_lambda_that_the_new_task_can_bear():
    found = choose_lambda(
        train, lambda m: new(m), None, budget=40, lower_is_better=True, new_may_lose=0.05
    )
    lams = found.curves["new"].lams
    bearable = new_loss(end_of_training(lams)) <= 0.05
    assert found.lam == lams[bearable].max() == 0.316
    assert found.sure
    assert "is not known, as there is no old validation data" in found.sentence
    assert "old" not in found.curves


def test_without_old_data_and_noisy_it_is_not_sure():
    found = choose_lambda(
        partial(train, noise=0.1), new, None, budget=30, lower_is_better=True, new_may_lose=0.05
    )
    assert not found.sure


def test_without_old_data_the_truth_is_among_those_that_cannot_be_told_apart():
    covered, found_it, n = 0, 0, 40
    for k in range(n):
        found = choose_lambda(
            partial(train, noise=0.02), new, budget=40, lower_is_better=True, new_may_lose=0.05,
            first_seed=100 * k,
        )  # fmt: skip
        covered += 0.316 in (found.lam, *found.unclear)
        found_it += found.lam == 0.316
    assert covered >= 0.93 * n
    assert found_it >= 0.9 * n  # those near the margin get enough seeds


@pytest.mark.parametrize(("margin", "direction"), [(10.0, 1), (1e-5, -1)])
def test_without_old_data_the_grid_goes_on_where_it_must(margin, direction):
    found = choose_lambda(train, new, budget=30, lower_is_better=True, new_may_lose=margin)
    if direction > 0:  # the new task bears everything
        assert found.lam == max(found.curves["new"].lams) > 1000
        assert "beyond the grid" in found.sentence
    else:
        assert 0 < found.lam < 0.1
        assert new_loss(end_of_training(found.lam)) <= margin


def least_squares(lam=1.0, steps=30):
    """Return an EWC whose model has learned y = 0 and then y = x with this λ."""
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ewc = EWC(model, lam=lam)
    ewc.consolidate((x, 0 * x), likelihood="gaussian")
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    with ewc.attach(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * (model(x) - x).square().mean()).backward()
            optimizer.step()
    return ewc


def test_what_the_penalty_foretells_is_reported_with_its_bias():
    found = choose_lambda(
        lambda lam, seed: least_squares(lam),
        lambda model: 1.25 * (model.weight.item() - 1) ** 2,
        budget=12,
        lower_is_better=True,
        new_may_lose=0.1,
    )
    curve = found.curves["predicted"]
    # F = E[x²] = 2.5, and w = 1 / (1 + λ): half of it times w².
    expected = 1.25 / (1 + curve.lams) ** 2
    np.testing.assert_allclose(curve.mean, expected, rtol=1e-3)
    assert "7 to 80 times" in found.sentence
    # Why the forecast cannot choose: new + c · foretold is least at λ = c, whatever c.
    for c in curve.lams[1:]:
        assert (found.curves["new"].mean + c * curve.mean).argmin() == list(curve.lams).index(c)


# --- models and data ----------------------------------------------------------------------------


def blobs(seed=0, n=60):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=g) + 2 * torch.eye(4)[y], y


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def test_of_data_the_accuracy_is_measured():
    models = {}

    def trained(lam, seed):
        return models.setdefault((lam, seed), classifier(seed + int(lam)))

    data = blobs()
    found = choose_lambda(trained, data, torch.utils.data.TensorDataset(*data), budget=6)
    for run in found.runs:
        right = models[run.lam, run.seed](data[0]).argmax(1) == data[1]
        assert run.new == run.old == pytest.approx(right.float().mean().item())


def test_data_of_another_kind_wants_a_metric():
    x = torch.randn(5, 4)
    with pytest.raises(RuntimeError, match="give a function of the model"):
        choose_lambda(lambda lam, seed: nn.Linear(4, 1), (x, x[:, :1]), budget=6)
    with pytest.raises(RuntimeError, match="must return a model or an EWC where new is data"):
        choose_lambda(lambda lam, seed: 3.0, blobs(), budget=6)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("curvature", ["diagonal", "compact", "kronecker"])
def test_softness_is_that_of_the_whole_matrix(curvature, tasks):
    model = classifier().double()
    x = blobs(n=12)[0].double()
    ewc = EWC(model, lam=7.0, curvature=curvature)
    ewc.consolidate((x, torch.zeros(12, dtype=torch.long)))
    if tasks == 2:  # around another optimum: under ``separate`` the sum has a constant
        with torch.no_grad():
            [p.add_(torch.randn_like(p)) for p in model.parameters()]
        ewc.consolidate((x, torch.zeros(12, dtype=torch.long)))
    for name, p in model.named_parameters():
        p.data.copy_(ewc.anchor[name])
    anchor = torch.cat([p.detach().flatten() for p in model.parameters()])
    least = ewc.penalty().item()
    # The whole matrix, from one gradient for each sample and class.
    F = torch.zeros(len(anchor), len(anchor), dtype=torch.float64)
    for sample in x:
        log_p = model(sample).log_softmax(0)
        for c in range(3):
            gradients = torch.autograd.grad(log_p[c], list(model.parameters()), retain_graph=True)
            g = torch.cat([part.flatten() for part in gradients])
            F += log_p[c].exp().item() * torch.outer(g, g) / len(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    here = torch.cat([p.detach().flatten() for p in model.parameters()])
    springs = 2 * (ewc.penalty().item() - least) / 7 / tasks
    expected = (here - anchor) @ F @ (here - anchor) / springs
    assert softness(ewc, (x, torch.zeros(12, dtype=torch.long))) == pytest.approx(expected.item())
    assert torch.equal(here, torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert ewc.lam == 7.0
    model[0].weight.requires_grad_(False)  # which changes nothing of the question
    assert softness(ewc, (x, None)) == pytest.approx(expected.item())


def test_softness_of_one_weight_is_one():
    ewc = least_squares(lam=0.0)
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    assert softness(ewc, (x, x), likelihood="gaussian") == pytest.approx(1.0)
    assert predicted_rise(ewc) == pytest.approx(1.25, rel=1e-3)


def test_two_tasks_foretell_the_rise_of_their_mean():
    model = classifier()
    ewc, data = EWC(model), blobs()
    ewc.consolidate(data)
    with torch.no_grad():
        model[0].weight.add_(0.1)
    once = predicted_rise(ewc)
    ewc.merge(dict(ewc.importance), at=ewc.anchor)
    assert predicted_rise(ewc) == pytest.approx(once)


@pytest.mark.parametrize("curvature", ["diagonal", "compact", "kronecker"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_what_gamma_has_left_of_equal_tasks_foretells_the_rise_of_each(curvature, gamma):
    """Σ γᵏ tasks make S, each of a loss that rises by ½ ΔᵀFΔ."""
    model = classifier()
    ewc = EWC(model, rule="online", gamma=gamma, curvature=curvature)
    F = ewc.measure(blobs())
    ewc.merge(F)
    with torch.no_grad():
        [p.add_(0.1) for p in model.parameters()]
    once = predicted_rise(ewc)
    for weight in (1.0, 2.0):
        ewc.merge(F, weight, at=ewc.anchor)
    assert ewc.summed == pytest.approx(gamma**2 + gamma + 2)
    tolerance = 0.02 if curvature == "compact" else 1e-5  # S is rounded to a byte
    assert predicted_rise(ewc) == pytest.approx(once, rel=tolerance)
    again = EWC(model, rule="online", curvature=curvature)
    again.load_state_dict(ewc.state_dict())
    assert predicted_rise(again) == predicted_rise(ewc)


def test_softness_says_what_it_lacks():
    model, data = classifier(), blobs()
    ewc = EWC(model)
    with pytest.raises(ValueError, match="consolidate a task first"):
        softness(ewc, data)
    ewc.consolidate(data)
    with pytest.raises(ValueError, match="train the model on the new task first"):
        softness(ewc, data)
    with torch.no_grad():
        model[0].weight.add_(0.1)
    ewc.consolidate(data)  # a constant is left at the common minimum
    for name, p in model.named_parameters():
        p.data.copy_(ewc.anchor[name])
    with pytest.raises(ValueError, match="train the model on the new task first"):
        softness(ewc, data)


# --- executors and files ------------------------------------------------------------------------


def old_of_ten(model):
    return old_loss(model[0], 10.0) + model[1]


def on(executor):
    return choose_lambda(
        partial(train, noise=0.1), new, old_of_ten, budget=30, lower_is_better=True,
        executor=executor,
    )  # fmt: skip


def test_threads_find_the_same():
    with ThreadPoolExecutor(3) as pool:
        assert repr(on(pool)) == repr(on(None))


@pytest.mark.slow
def test_processes_find_the_same():
    with ProcessPoolExecutor(2) as pool:
        assert repr(on(pool)) == repr(on(None))


@pytest.mark.slow
def test_dask_finds_the_same():
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert repr(on(client.get_executor())) == repr(on(None))


class Breaks(Executor):
    """Does so many trainings and then loses its worker."""

    def __init__(self, after):
        self.left = after
        self._pool = ThreadPoolExecutor(1)

    def submit(self, function, *args):
        self.left -= 1
        if self.left < 0:
            raise BrokenExecutor("the worker is gone")
        return self._pool.submit(function, *args)


def test_what_a_lost_worker_had_to_do_is_done_here():
    with pytest.warns(RuntimeWarning, match="the worker is gone"):
        found = on(Breaks(after=5))
    assert repr(found) == repr(on(None))


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    file = tmp_path / "new" / "runs.csv"
    calls = []

    def watched(lam, seed, last):
        if len(calls) == last:
            raise KeyError("power cut")
        if calls:  # each row is there before the next training begins
            assert len(list(csv.DictReader(file.open()))) == len(calls)
        calls.append((lam, seed))
        return train(lam, seed, noise=0.1)

    def search(last):
        options = {"budget": 30, "lower_is_better": True, "file": file}
        return choose_lambda(partial(watched, last=last), new, old_of_ten, **options)

    with pytest.raises(RuntimeError, match=r"λ = 1 with seed 1 failed \(KeyError.*runs\.csv"):
        search(last=8)
    found = search(last=99)
    assert len(calls) == len(set(calls)) == len(found.runs)
    assert repr(found) == repr(on(None))
    assert [path.name for path in file.parent.iterdir()] == ["runs.csv"]
    done = len(calls)
    assert repr(search(last=99)) == repr(found)
    assert len(calls) == done


def test_a_seed_of_numpy_is_read_again(tmp_path):
    file = tmp_path / "runs.csv"
    once = choose(budget=8, old=old_of(10.0), file=file, first_seed=np.int64(3))
    again = choose(budget=8, old=old_of(10.0), file=file, first_seed=3)
    assert again.runs == once.runs
    assert {run.seed for run in once.runs} <= {3, 4}


def test_a_failed_training_on_an_executor_is_named():
    def fails(lam, seed):
        raise OSError("no space")

    with (
        ThreadPoolExecutor(2) as pool,
        pytest.raises(RuntimeError, match=r"The training at λ = .* failed \(OSError: no space\)"),
    ):
        choose_lambda(fails, new, budget=20, executor=pool)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n", "must hold runs of choose_lambda"),
        ("", "but .* has none"),
        ("lam,seed,old,new,predicted\n1.0,0,,0.5,\n", "holds runs without old validation data"),
        ("lam,seed,old,new,predicted\n1.0,0\n", "line 2, is no run"),
        ("lam,seed,old,new,predicted\nx,0,1,1,\n", "line 2, is no run"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, words):
    file = tmp_path / "runs.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        choose(file=file)
    assert file.read_text() == content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 5}, "budget must be a whole number of at least 6"),
        ({"budget": 20.0}, "budget must be a whole number"),
        ({"bayes": 0}, "bayes must be a finite number above zero, not 0"),
        ({"first_seed": 0.5}, "first_seed must be a whole number, not 0.5"),
        ({"softness": math.inf}, "softness must be a finite number above zero, not inf"),
        ({"factor": 1.0}, "factor must be a finite number above 1, not 1.0"),
        ({"new_may_lose": -0.1}, "new_may_lose must be a finite number that is not negative"),
    ],
)
def test_bad_arguments_are_named(options, words):
    def never(lam, seed):
        raise AssertionError("trained nevertheless")

    with pytest.raises(ValueError, match=words):
        choose_lambda(never, new, **({"budget": 20} | options))


def test_the_tail_of_students_t():
    # Critical values of the printed tables: P(T > t) = 0.05, 0.025 and 0.005.
    for t, freedom, p in ((6.314, 1, 0.05), (2.571, 5, 0.025), (2.750, 30, 0.005)):
        assert student_tail(t, freedom) == pytest.approx(p, rel=2e-3)
        assert student_tail(-t, freedom) == pytest.approx(1 - p, rel=2e-3)


def test_the_picture_shows_curves_choice_and_bayes():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    found = choose(noise=0.3)
    ax = found.plot(pyplot.subplots()[1])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"old", "new", "score", "may be best", "Bayes: 1"} <= set(labels)
    assert any(label.startswith("chosen") for label in labels)
    pyplot.close(ax.figure)
