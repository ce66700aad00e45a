"""The textbook functions of notebook 11 against descents, merged tasks and pairs by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import reference


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_what_is_left_of_an_update_is_the_difference_of_two_descents(steps):
    root, b, delta = draw(3, 3, seed=0), draw(3, seed=1), draw(3, seed=2)
    H = root @ root.T / 3
    ends = []
    for start in (draw(3, seed=3), draw(3, seed=3) + delta):
        theta = start.requires_grad_()
        optimizer = torch.optim.SGD([theta], lr=0.2)
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * (theta - b) @ H @ (theta - b)).backward()
            optimizer.step()
        ends.append(theta.detach())
    found = reference.left_of_update(delta, H, 0.2, steps)
    torch.testing.assert_close(found, ends[1] - ends[0])


def test_dropping_a_task_leaves_what_the_others_alone_would_give():
    """Eighths keep S − F exact; weight 0 has no spring at all, weight 1 that of the task alone."""
    generator = torch.Generator().manual_seed(4)
    fishers = torch.randint(1, 6, (3, 6), generator=generator).double() / 8
    fishers[:, 0] = fishers[1:, 1] = 0
    thetas = draw(3, 6, seed=5)

    def merged(tasks: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        model = nn.Linear(6, 1, bias=False).double()
        ewc = EWC(model, lam=1.0)
        for t in tasks:
            ewc.merge({"weight": fishers[t].view(1, 6)}, at={"weight": thetas[t].view(1, 6)})
        return ewc.importance["weight"].flatten(), ewc.anchor["weight"].flatten()

    S, mu = merged([0, 1, 2])
    found_S, found_mu = reference.drop_task(S, mu, fishers[0], thetas[0])
    expected_S, expected_mu = merged([1, 2])
    assert expected_S[:2].tolist() == found_mu[:2].tolist() == [0, 0]
    torch.testing.assert_close(found_S, expected_S)
    torch.testing.assert_close(found_mu[2:], expected_mu[2:])


def test_an_anchor_without_a_spring_is_zero_whatever_rounding_has_left():
    S, mu, F, theta = torch.tensor([[0.5], [1.0], [0.5], [1.125]])
    assert [v.tolist() for v in reference.drop_task(S, mu, F, theta)] == [[0.0], [0.0]]


@pytest.mark.parametrize("n_retrained", [2, 3, 5])
def test_disagreement_is_counted_pair_by_pair(n_retrained):
    generator = torch.Generator().manual_seed(n_retrained)
    answers, *retrained = torch.randint(3, (n_retrained + 1, 20), generator=generator)

    def differ(a: torch.Tensor, b: torch.Tensor) -> int:
        return sum(x != y for x, y in zip(a.tolist(), b.tolist(), strict=True))

    to_them = [differ(answers, one) for one in retrained]
    among_them = [differ(a, b) for a, b in combinations(retrained, 2)]
    expected = (sum(to_them) / len(to_them)) / (sum(among_them) / len(among_them))
    found = reference.disagreement_in_spreads(answers, torch.stack(retrained))
    assert isinstance(found, float)
    assert found == pytest.approx(expected)
