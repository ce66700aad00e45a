"""The textbook functions of notebook 06 against sums of parabolas and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import reference


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


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_online_update_is_a_fading_sum_around_the_newest_weights(gamma):
    S, mu, _, F, here, _ = memories(7)
    new_S, anchor = reference.online_update(S, mu, F, here, gamma)
    expected = [gamma * s + f for s, f in zip(S.tolist(), F.tolist(), strict=True)]
    assert new_S.tolist() == pytest.approx(expected)
    newest = here.tolist()
    here.zero_()  # training goes on in place
    assert anchor.tolist() == newest


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
