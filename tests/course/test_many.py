"""What notebook 06 adds: how free a weight still is, and where the rules put their anchor."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course.metrics import freedom, share_free
from experiments import many_tasks as search


@pytest.mark.parametrize("S", [0.0, 1e-9, 1e-3, 0.2, 30.0])
@pytest.mark.parametrize("steps", [1, 7, 420])
def test_freedom_is_the_way_that_a_constant_push_really_moves(S, steps):
    lr, lam = 0.3, 2.0
    weight = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(weight.weight)
    ewc = EWC(weight, lam)
    ewc.merge({"weight": torch.full((1, 1), S, dtype=torch.float64)})
    optimizer = torch.optim.SGD(weight.parameters(), lr=lr)
    for _ in range(steps):
        weight.weight.grad = torch.full((1, 1), -1.0, dtype=torch.float64)
        optimizer.step()
        ewc.proximal_step_(lr)
    expected = weight.weight.item() / (lr * steps)
    assert freedom(np.array(S), lr, lam, steps).item() == pytest.approx(expected, rel=1e-9)


def test_free_share_counts_weights_that_keep_half_of_the_way():
    # One step: 1 / (1 + x) with x = 0, 1/2, 1, 2.
    S = {"a": np.array([0.0, 0.5]), "b": torch.tensor([[1.0], [2.0]])}
    assert share_free(S, lr=0.1, lam=10, steps=1) == 0.75
    assert share_free(S, lr=0.1, lam=0, steps=1) == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"importance": np.array([-1.0])}, "importance must be finite and not negative"),
        ({"importance": np.array([np.nan])}, "importance must be finite and not negative"),
        ({"importance": np.array([])}, "importance must hold at least one weight"),
        ({"lr": -0.1}, "lr must be a finite number of at least 0, not -0.1"),
        ({"lam": float("inf")}, "lam must be a finite number of at least 0, not inf"),
        ({"steps": 0}, "steps must be a finite number of at least 1, not 0"),
    ],
)
def test_bad_arguments_are_named(options, words):
    good = {"importance": np.array([1.0]), "lr": 0.1, "lam": 1.0, "steps": 1}
    with pytest.raises(ValueError, match=words):
        share_free(**(good | options))


def weights_of_tasks(n_tasks: int, rule: str, gamma: float = 1.0, lam: float = 1.0) -> np.ndarray:
    """Return what each task's own optimum weighs in the last one, all losses ½ (θ − m_t)².

    Column k of the parameter follows what happens if m_k = 1 and all others are 0.
    """
    theta = nn.Linear(n_tasks, 1, bias=False).double()
    nn.init.zeros_(theta.weight)
    ewc = EWC(theta, lam, rule=rule, gamma=gamma)
    for own in torch.eye(n_tasks, dtype=torch.float64):
        S, mu = ewc.importance["weight"], ewc.anchor["weight"]
        with torch.no_grad():
            theta.weight.copy_((own + lam * S * mu) / (1 + lam * S))
        ewc.merge({"weight": torch.ones(1, n_tasks, dtype=torch.float64)})
    return theta.weight.detach().numpy()[0]


@pytest.mark.parametrize("n_tasks", [2, 3, 10])
def test_where_losses_are_quadratic_latest_is_exact_and_separate_counts_early_tasks_twice(n_tasks):
    np.testing.assert_allclose(weights_of_tasks(n_tasks, "latest"), 1 / n_tasks)
    k = np.arange(1, n_tasks)
    np.testing.assert_allclose(
        weights_of_tasks(n_tasks, "separate"), [*(1 / (k * (k + 1))), 1 / n_tasks]
    )


def test_with_a_decay_below_one_and_under_average_a_task_fades_by_a_constant_factor():
    for rule, gamma, factor in (("online", 0.5, 2 / 3), ("average", 1.0, 1 / 2)):
        weights = weights_of_tasks(12, rule, gamma)
        # Newest first; the limit of the factor is reached as S settles.
        np.testing.assert_allclose(weights[-5:-1] / weights[-4:], factor, rtol=0.02)


def test_average_at_a_larger_lambda_forgets_more_slowly():
    weights = weights_of_tasks(10, "average", lam=9.0)
    np.testing.assert_allclose(weights[1:-1] / weights[2:], 0.9)
    assert weights[-1] == pytest.approx(0.1)


def test_the_stored_search_is_complete_and_its_choices_lie_inside():
    rows = search.stored()
    assert not rows.duplicated(search.KEY).any()
    assert not set(search.SEARCH_SEEDS) & set(search.REPORT_SEEDS)
    for name in search.SETTINGS:
        cells = search.chosen(name)
        assert {cell[1:3] for cell in cells} == set(
            search.RULES if name == "base" else search.TWO_RULES
        )
        for _, rule, gamma, lam in cells:
            mine = rows[(rows.setting == name) & (rows.rule == rule) & (rows.gamma == gamma)]
            tried = set(mine.lam[mine.seed.isin(search.SEARCH_SEEDS)])
            assert set(search.neighbours(lam)) <= tried, (name, rule, gamma)
            assert min(tried) < lam < max(tried), (name, rule, gamma)
            assert set(mine.seed[mine.lam == lam]) >= set(search.REPORT_SEEDS), (name, rule, gamma)


def test_the_stored_matrices_are_what_the_other_columns_say():
    rows = search.stored()
    R = np.array([[float(value) for value in text.split()] for text in rows.R])
    T = search.N_TASKS
    assert R.shape == (len(rows), T * T)
    np.testing.assert_allclose(R[:, -T:].mean(axis=1), rows.average_accuracy, atol=1e-3)
    free = np.array([[float(value) for value in text.split()] for text in rows.free])
    assert free.shape == (len(rows), 3 * T)
    assert ((free >= 0) & (free <= 1)).all()
    # Where the anchor is the last optimum, the two accuracies are one.
    others = rows[rows.rule != "separate"]
    assert (others.at_anchor - others.average_accuracy).abs().max() < 1e-3
    assert pd.api.types.is_float_dtype(rows.lam)
