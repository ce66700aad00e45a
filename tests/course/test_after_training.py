"""The rows of ``experiments/after_training.py`` against what they must be at both ends."""

from __future__ import annotations

import pytest

from ewc_tutorial.course import tables
from experiments import after_training as search


@pytest.mark.slow
def test_a_way_back_begins_at_plain_training_and_ends_at_the_old_weights():
    def row(method, lam, damping=0.0):
        found = search.run("digits-2", method, damping, lam, seed=3)
        return found["old"], found["new"]

    plain = row("plain", 0.0)
    for method in ("line", "kronecker path"):
        assert row(method, 0.0) == plain
    old, new = row("line", 1e9)
    assert old > 0.9
    assert new < 0.25  # other pixels, and nothing of them was learned


def test_no_run_of_the_report_chose_its_own_setting():
    rows = tables.load("after_training")
    assert set(rows.seed) == {*search.SEARCH, *search.REPORT}
    wanted = {
        (setting, method, *point, seed)
        for setting in rows.setting.unique()
        for method in search.METHODS
        for point in search.grid(method)
        for seed in (*search.SEARCH, *search.REPORT)
    }
    assert set(rows[search.KEY].itertuples(index=False, name=None)) == wanted
