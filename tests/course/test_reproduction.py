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


def test_one_cell_is_run_again_beside_the_stored_rows_and_nothing_is_stored(
    tmp_path, monkeypatch, capsys
):
    from experiments import reproduce

    table = tmp_path / "reproduce.csv"
    table.write_text(
        "experiment,cell,method,lam,seed,accuracy,threads\n"
        "split,task,EWC,10.0,0,0.9,1\nsplit,task,EWC,10.0,1,0.8,1\n"
        "split,task,EWC,10.0,100,0.7,1\nsplit,task,none,0.0,0,0.6,1\n"
    )
    before, asked = table.read_text(), []

    def execute(run, device, threads):
        asked.append((run.lam, run.seed))
        return reproduce.Result(0.91, 2.0, 0.0, "null", device, threads, "")

    monkeypatch.setattr(reproduce, "TABLE", table)
    monkeypatch.setattr(reproduce, "execute", execute)
    reproduce.again("split", "task", "EWC", [], "cpu")
    assert asked == [(10.0, 0), (10.0, 1)], "the seed that chose λ is not reported"
    assert "seed 0: stored 0.90000, again 0.91000" in capsys.readouterr().out
    reproduce.again("split", "task", "EWC", [1], "cpu")
    assert asked[2:] == [(10.0, 1)]
    with pytest.raises(SystemExit, match="no rows for 'split', 'task', 'EWC' and seeds"):
        reproduce.again("split", "task", "EWC", [7], "cpu")
    assert table.read_text() == before


def test_the_further_seeds_are_those_of_all_cells():
    from experiments.reproduce import reported_runs

    runs = list(reported_runs(["split_seeds"], range(5), "500", {}))
    assert {run.experiment for run in runs} == {"split"}
    cells = {}
    for run in runs:
        cells.setdefault((run.cell, run.method), []).append(run.seed)
    assert len(cells) == 9
    assert set(map(tuple, cells.values())) == {tuple(range(5, 11))}
