"""The experiment that compares curvatures at equal quality of the new."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import kronecker_elsewhere as elsewhere


def curve(new, old) -> pd.DataFrame:
    lam = [0.0, *10.0 ** np.arange(len(new) - 1)]
    return pd.DataFrame({"lam": lam, "new": new, "old": old}).sample(frac=1, random_state=0)


@pytest.mark.parametrize("limit", [1.0, 1.05, 1.7, 2.9])
def test_the_old_where_the_new_is_as_good_as_is_asked(limit):
    new = np.array([1.0, 1.2, 2.0, 3.0])
    line = curve(new, 7 - 2 * new)  # whatever the λ: all on one line
    assert elsewhere.at_equal_new(line, limit) == pytest.approx(7 - 2 * limit)


def test_the_largest_lambda_counts_and_nothing_is_made_up():
    wavy = curve([1.0, 1.3, 1.1, 2.1], [9.0, 8.0, 5.0, 4.0])
    assert elsewhere.at_equal_new(wavy, 1.2) == pytest.approx(5 - 0.1)
    assert np.isnan(elsewhere.at_equal_new(wavy, 0.9))
    assert np.isnan(elsewhere.at_equal_new(wavy, 2.1))


def test_what_other_tables_hold_is_not_run_again():
    known = elsewhere.known()
    assert not known.duplicated(elsewhere.KEY).any()
    keys = set(known[elsewhere.KEY].itertuples(index=False, name=None))
    runs = set(elsewhere.curves(["language", "speech", *elsewhere.SCENARIOS], []))
    assert {key[1] for key in runs - keys} == {"kronecker"}


@pytest.mark.slow
def test_a_scenario_repeats_what_the_other_table_has():
    known = elsewhere.known().set_index(elsewhere.KEY).average_accuracy
    key = ("domain", "diagonal", "proximal", 100.0, 100)
    row = elsewhere.run(*key)
    # Other machines round otherwise, which may decide a few of the 450 digits.
    assert row["average_accuracy"] == pytest.approx(known[key], abs=0.02)
    assert row["average_accuracy"] == pytest.approx((4 * row["old"] + row["new"]) / 5, abs=1e-4)


@pytest.mark.slow
def test_the_language_model_learns_with_factors(monkeypatch):
    pytest.importorskip("transformers", reason="the group 'huggingface' is not installed")
    from experiments import language_instances as instances

    monkeypatch.setitem(instances.FIRST, "steps", 20)
    monkeypatch.setitem(instances.LATER, "steps", 10)
    elsewhere._language_model.cache_clear()
    rows = {
        lam: elsewhere.run("language", "kronecker" if lam else "plain", "gradient", lam, 0)
        for lam in (0.0, 1e-6, 1e4)
    }
    elsewhere._language_model.cache_clear()
    for side in ("old", "new"):
        assert rows[1e-6][side] == pytest.approx(rows[0.0][side], rel=1e-3)
    assert rows[1e4]["new"] > rows[0.0]["new"] + 0.1
