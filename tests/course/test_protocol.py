"""The protocol is what the stored search chose, and runs what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ewc_tutorial import EWC, L2
from ewc_tutorial.course import learn, mlp, permuted_tasks, tables
from ewc_tutorial.course.protocol import METHODS, PROTOCOL
from experiments import protocol_search as search

SMALL = replace(PROTOCOL, hidden=(16,), epochs=1)


def test_the_protocol_is_what_the_stored_search_chose():
    table = search.best(search.stored())
    hidden, batch_size, epochs = search.choose(table)
    assert PROTOCOL.hidden == tuple(int(width) for width in hidden.split("-"))
    assert (PROTOCOL.batch_size, PROTOCOL.epochs) == (batch_size, epochs)
    chosen = table[
        [search.setting_of(row) == (hidden, batch_size, epochs) for row in table.itertuples()]
    ]
    assert set(chosen.method) == set(METHODS) == set(PROTOCOL.settings)
    for row in chosen.itertuples():
        setting = PROTOCOL.settings[row.method]
        assert (setting.lr, setting.lam) == (row.lr, row.lam), row.method


def test_each_choice_lies_inside_the_grid_that_was_searched():
    rows = search.stored()
    setting = "-".join(map(str, PROTOCOL.hidden)), PROTOCOL.batch_size, PROTOCOL.epochs
    rows = rows[[search.setting_of(row) == setting for row in rows.itertuples()]]
    rows = rows[rows.seed.isin(search.SEARCH_SEEDS)]
    for method, choice in PROTOCOL.settings.items():
        mine = rows[rows.method == method]
        assert mine.lr.min() < choice.lr < mine.lr.max(), method
        if choice.lam:
            same_lr = mine[mine.lr == choice.lr]
            assert same_lr.lam.min() < choice.lam < same_lr.lam.max(), method


def test_what_is_reported_comes_from_seeds_that_chose_nothing():
    rows = search.stored()
    assert not set(search.SEARCH_SEEDS) & set(search.REPORT_SEEDS)
    report = rows[rows.seed.isin(search.REPORT_SEEDS)].groupby("method").average_accuracy
    mean, error = report.mean(), report.sem()
    for other in ("plain", "L2"):
        assert mean["EWC"] - mean[other] > 4 * np.hypot(error["EWC"], error[other])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_learn_with_the_protocols_settings(method):
    tasks = permuted_tasks(2, n_train=200, n_test=100)
    setting = SMALL.settings[method]
    model = mlp(64, SMALL.hidden, 10, seed=3)
    penalty = {"EWC": EWC, "L2": L2}.get(method)
    expected = learn(
        model,
        tasks,
        penalty(model, setting.lam) if penalty else None,
        joint=method == "joint",
        epochs=SMALL.epochs,
        lr=setting.lr,
        batch_size=SMALL.batch_size,
        seed=3,
    )
    np.testing.assert_array_equal(SMALL.run(method, tasks, seed=3).curves, expected.curves)


def test_a_run_takes_another_lambda_and_another_budget():
    tasks = permuted_tasks(2, n_train=200, n_test=100)
    free = SMALL.run("EWC", tasks, lam=0.0, steps=12)
    plain = learn(
        mlp(64, SMALL.hidden, 10, seed=0),
        tasks,
        steps=12,
        lr=SMALL.settings["EWC"].lr,
        batch_size=SMALL.batch_size,
    )
    np.testing.assert_array_equal(free.accuracy, plain.accuracy)
    assert free.boundaries.tolist() == [12, 24]


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method must be one of plain, L2, EWC, joint, not 'SI'"):
        SMALL.run("SI", permuted_tasks(1, n_train=200, n_test=100))


def test_the_ten_task_table_is_complete():
    table = tables.load("ten_tasks")
    assert len(table) == len([*METHODS, "EWC, 512 units"]) * 5 * 10 * 10
    assert not table.duplicated(["method", "seed", "learned", "tested"]).any()
    assert table.accuracy.between(0, 1).all()
