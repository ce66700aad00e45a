"""The textbook functions of notebook 06 against sums of parabolas and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises import many


def memories(seed: int, size: int = 4) -> list[torch.Tensor]:
    """Return S, μ, c, F, θ_here and another θ; two weights are used by one side alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    S, F = draw(size).square() + 0.1, draw(size).square() + 0.1
    S[0] = F[1] = 0
    return [S, draw(size), torch.tensor(1.7).double(), F, draw(size), draw(size)]


@pytest.mark.parametrize("seed", range(5))
def test_one_task_more_is_the_sum_of_the_parabolas_everywhere(seed):
    S, mu, c, F, here, theta = memories(seed)
    new_S, new_mu, new_c = reference.one_task_more(S, mu, c, F, here)
    expected = c.item() + sum(
        s * (t - m) ** 2 + f * (t - h) ** 2
        for s, m, f, h, t in zip(*(v.tolist() for v in (S, mu, F, here, theta)), strict=True)
    )
    assert ((new_S * (theta - new_mu) ** 2).sum() + new_c).item() == pytest.approx(expected)


def test_tasks_one_by_one_are_those_of_the_ewc_class():
    model = nn.Linear(4, 1, bias=False).double()
    ewc = EWC(model, lam=2.0)
    S, mu, c = torch.zeros(4).double(), torch.zeros(4).double(), torch.zeros(()).double()
    for seed in range(3):
        here, F = memories(seed)[4], memories(seed)[0] + 0.01
        with torch.no_grad():
            model.weight.copy_(here.view(1, 4))
        ewc.merge({"weight": F.view(1, 4)})
        S, mu, c = reference.one_task_more(S, mu, c, F, here)
    torch.testing.assert_close(ewc.importance["weight"].flatten(), S)
    torch.testing.assert_close(ewc.anchor["weight"].flatten(), mu)
    expected = (S * (here - mu) ** 2).sum() + c
    torch.testing.assert_close(ewc.penalty().detach(), expected)


@pytest.mark.parametrize("guilty", range(3))
@pytest.mark.parametrize("broken", range(2, 6))
def test_the_run_with_the_bug_is_the_one_that_the_package_would_not_have_made(guilty, broken):
    """The package's EWC on parabolas, minimised in closed form; one run is moved at one task."""
    rng = np.random.default_rng(10 * guilty + broken)
    optima, fishers, paths = rng.normal(size=(3, 5, 2)), rng.uniform(0.5, 2, (3, 5, 2)), []
    for run in range(3):
        model = nn.Linear(2, 1, bias=False).double()
        ewc, path = EWC(model, lam=1.0, rule="online", gamma=0.6), []
        for t, (m, F) in enumerate(zip(optima[run], fishers[run], strict=True), start=1):
            S = ewc.importance["weight"].numpy()[0] if t > 1 else np.zeros(2)
            mu = ewc.anchor["weight"].numpy()[0] if t > 1 else np.zeros(2)
            here = (S * mu + F * m) / (S + F) + rng.uniform(-0.009, 0.009, 2)
            if (run, t) == (guilty, broken):
                here[rng.integers(2)] += rng.choice([-0.1, 0.1])
            path.append(here)
            model.load_state_dict({"weight": torch.from_numpy(here)[None]})
            ewc.merge({"weight": torch.from_numpy(F)[None]})
        paths.append(path)
    case = [torch.from_numpy(np.array(a)) for a in (paths, optima, fishers)]
    assert reference.run_with_the_bug(*case, 0.6) == (guilty, broken)


def test_three_right_runs_are_an_error():
    paths = torch.zeros(3, 4, 2)
    with pytest.raises(ValueError, match="must hold a run that does not follow the rule"):
        reference.run_with_the_bug(paths, paths, paths + 1, 0.5)


@pytest.mark.parametrize("bug", many.BUGS)
@pytest.mark.parametrize("seed", range(5))
def test_a_bug_shows_clearly_and_at_once_and_right_runs_never_seem_wrong(bug, seed):
    paths, optima, fishers, gamma = many.three_programs(seed, bug)
    guilty, first = reference.run_with_the_bug(paths, optima, fishers, gamma)
    for run in range(3):
        S, mu, worst = 0.0, 0.0, []
        for here, m, F in zip(paths[run], optima[run], fishers[run], strict=True):
            worst.append(float((here - (S * mu + F * m) / (S + F)).abs().max()))
            S, mu = gamma * S + F, here
        if run == guilty:
            assert max(worst[: first - 1]) < 0.01 < 0.09 < worst[first - 1]
        else:
            assert max(worst) < 0.01


@pytest.mark.parametrize(
    ("lr", "lam", "steps"), [(0.3, 100.0, 420), (0.1, 1e3, 50), (0.3, 30.0, 10), (0.2, 5.0, 1)]
)
def test_share_free_is_the_geometric_series(lr, lam, steps):
    def freedom(s: float) -> float:
        """Σ_k (1 + x)⁻ᵏ / n for k = 1 … n, summed in closed form."""
        x = lr * lam * s
        return -math.expm1(-steps * math.log1p(x)) / (steps * x) if x else 1.0

    S = torch.logspace(-8, 1, 150, dtype=torch.float64)
    S[::7] = 0
    expected = sum(freedom(s) >= 0.5 for s in S.tolist()) / len(S)
    assert 0.2 < expected < 1
    found = reference.share_free(S, lr, lam, steps)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, abs=1e-12)


def test_half_of_the_way_is_free():
    S = torch.tensor([1.0, 1.0001], dtype=torch.float64)
    assert reference.share_free(S, lr=0.5, lam=2.0, steps=1) == 0.5
