"""Which of the stored runs a lesson may report."""

from __future__ import annotations

import pandas as pd
import pytest

from ewc_tutorial.course import tables

ROWS = pd.DataFrame(
    [
        # Best on the report seeds, but not on those that choose.
        *({"lr": 0.1, "lam": 10.0, "seed": s, "average_accuracy": 0.99} for s in (0, 1)),
        *({"lr": 0.1, "lam": 10.0, "seed": s, "average_accuracy": 0.50} for s in (100, 101)),
        *({"lr": 0.1, "lam": 30.0, "seed": s, "average_accuracy": 0.70 + s} for s in (1, 0)),
        *({"lr": 0.1, "lam": 30.0, "seed": s, "average_accuracy": 0.80} for s in (100, 101)),
    ]
)


def test_the_search_seeds_choose_and_the_others_report():
    found = tables.reported(ROWS, ["lr", "lam"])
    assert list(found.seed) == [0, 1]
    assert list(found.average_accuracy) == [0.70, 1.70]
    pd.testing.assert_frame_equal(tables.reported(ROWS, ["lam"]), found)


def test_a_setting_without_search_or_report_is_refused():
    with pytest.raises(ValueError, match="runs on search seeds"):
        tables.reported(ROWS[ROWS.seed < 100], ["lr", "lam"])
    with pytest.raises(ValueError, match=r"at the best setting, .*30\.0"):
        tables.reported(ROWS[(ROWS.seed >= 100) | (ROWS.lam == 10)], ["lr", "lam"])


def test_an_unknown_table_is_refused_with_the_names_of_all():
    with pytest.raises(ValueError, match="curvatures.*not 'nothing'"):
        tables.load("nothing")
