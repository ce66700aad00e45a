"""The comparison with published numbers, on rows made by hand."""

from __future__ import annotations

import json
import math
import statistics

import pandas as pd
import pytest

from ewc_tutorial.course import reproduction


@pytest.fixture
def runs(tmp_path):
    lines = ["experiment,cell,method,lam,seed,accuracy,seconds,fisher_seconds,detail,device"]
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        lines.append(f'split,task,EWC,10.0,{seed},{accuracy},{seed + 1},0.5,"[1,[2]]",cpu')
    for lam, accuracy in ((1, 0.5), (10, 0.7), (100, 0.6)):
        lines.append(f"split,task,EWC,{lam},100,{accuracy},9,9,null,cpu")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return reproduction.load_runs(path)


def test_the_summary_leaves_the_tuning_seed_out(runs):
    (row,) = reproduction.summary(runs).itertuples()
    values = [90.0, 92.0, 97.0]
    assert row.mean == pytest.approx(statistics.mean(values))
    assert row.sem == pytest.approx(statistics.stdev(values) / math.sqrt(3))
    assert (row.count, row.seconds) == (3, 2)
    assert runs["detail"].iloc[0] == json.loads("[1, [2]]")


def test_lam_is_chosen_on_the_tuning_seed(runs):
    assert reproduction.best_lambda(runs)["split", "task", "EWC"] == 10
    assert list(reproduction.tuned(runs)["lam"]) == [1, 10, 100]


@pytest.mark.parametrize(("published", "se", "verdict"), [
    (93.0, 0.1, "agrees"), (97.0, math.nan, "agrees"), (98.0, 0.1, "differs"),
    (99.0, math.nan, "differs"), (98.0, 2.0, "agrees"), (80.0, 3.0, "differs"),
])  # fmt: skip
def test_the_verdict_counts_both_errors(runs, published, se, verdict):
    ours = reproduction.summary(runs)
    table = pd.DataFrame([{"experiment": "split", "cell": "task", "method": "EWC",
                           "accuracy": published, "se": se}])  # fmt: skip
    (row,) = reproduction.compare(ours, table).itertuples()
    sem = statistics.stdev([90.0, 92.0, 97.0]) / math.sqrt(3)
    error = math.sqrt(sem**2 + (0 if math.isnan(se) else se) ** 2)
    assert row.z == pytest.approx((93.0 - published) / error)
    assert row.verdict == verdict


def test_two_values_of_lam_for_one_cell_are_refused(runs):
    twice = reproduction.summary(runs.assign(seed=0))
    with pytest.raises(ValueError, match="one row for each cell"):
        reproduction.compare(twice, reproduction.load_published())


def test_a_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="reproduce.py"):
        reproduction.load_runs(tmp_path / "none.csv")


def test_the_published_numbers_are_percentages_with_a_source():
    published = reproduction.load_published()
    assert published["accuracy"].between(10, 100).all()
    assert not published.duplicated(["experiment", "cell", "method"]).any()
    assert published["source"].notna().all()
