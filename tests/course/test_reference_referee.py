"""The referee: settings are chosen without the report, differences are paired."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from ewc_tutorial.course import plots, referee, reference, tables


def table(accuracies: dict[tuple[str, float, float], dict[int, float]]) -> pd.DataFrame:
    """Return rows of one setting: (method, lr, lam) → seed → accuracy."""
    return pd.DataFrame(
        [
            {"setting": "s", "method": m, "lr": lr, "lam": lam, "seed": seed, "average_accuracy": a}
            for (m, lr, lam), runs in accuracies.items()
            for seed, a in runs.items()
        ]
    )


def test_the_report_does_not_choose_and_the_deciding_seeds_overrule_the_search():
    rows = table(
        {
            ("exact", 0.1, 1.0): {100: 0.9, 101: 0.9, 102: 0.5, 0: 0.99, 1: 0.99},
            ("exact", 0.1, 3.0): {100: 0.8, 101: 0.8, 102: 0.6, 0: 0.50, 1: 0.60},
            ("other", 0.2, 7.0): {100: 0.7, 101: 0.7, 102: 0.7, 0: 0.61, 1: 0.72},
        }
    )
    found = referee.report(rows, "s")
    assert found.lam.to_dict() == {"exact": 3.0, "other": 7.0}
    assert found.accuracy["exact"] == pytest.approx(0.55)
    # Differences 0.11 and 0.12: mean 0.115, standard deviation 0.01/√2, error a √2-th of it.
    assert found.gain["other"] == pytest.approx(0.115)
    assert found.gain_sem["other"] == pytest.approx(0.005)
    # Student's t of two seeds is 12.7.
    assert found.clear.to_dict() == {"exact": False, "other": True}
    assert math.isnan(found.gain["exact"])
    assert referee.best_setting(rows[rows.seed != 102].query("method == 'exact'")) == (0.1, 1.0)
    exact = rows[rows.method == "exact"]
    assert list(referee.runs_of(exact, [102]).average_accuracy) == [0.6]


def test_every_method_of_the_stored_table_has_its_report_on_equal_seeds():
    rows = tables.load("importances")
    for setting, seeds in (("permuted-digits", 10), ("split-mnist", 5)):
        found = referee.report(rows, setting)
        assert (found.seeds == seeds).all()
        assert {"plain", "exact", "kronecker", "joint"} <= set(found.index)


def test_path_importance_by_hand():
    # One weight goes 0 → 1 → 3 under gradients −2 and −1: gain 2·1 + 1·2, distance 3² + 1.
    weights = [torch.tensor([w]) for w in (0.0, 1.0, 3.0)]
    gradients = [torch.tensor([-2.0]), torch.tensor([-1.0])]
    assert reference.path_importance(gradients, weights, 1.0).item() == pytest.approx(0.4)
    uphill = [-g for g in gradients]
    assert reference.path_importance(uphill, weights, 1.0).item() == 0.0


def test_held_against_by_hand():
    a_search, b_search = torch.tensor([[0.1, 0.1], [0.5, 0.6]]), torch.tensor([[0.9], [0.2]])
    a_report, b_report = torch.tensor([[0.9, 0.9], [0.4, 0.7]]), torch.tensor([[0.3, 0.5], [0, 0]])
    gain, error = reference.held_against(a_search, a_report, b_search, b_report)
    assert gain == pytest.approx(0.15)
    assert error == pytest.approx(0.05)


def test_the_figure_has_a_panel_for_each_setting():
    rows = tables.load("importances")
    report = referee.report(rows, "split-digits").drop(index=["exact", "plain"])
    figure = plots.paired_gains({"one": report, "two": report})
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    assert len(figure.axes[0].get_yticks()) == len(report)
