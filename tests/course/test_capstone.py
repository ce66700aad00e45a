"""The last exercise's report is recomputed, and says what does not hold."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from ewc_tutorial.course import check, mlp, permuted_tasks
from ewc_tutorial.course.capstone import REPORT_SEEDS, SEARCH_SEEDS, Design, Report, audit
from ewc_tutorial.course.training import accuracies, train
from ewc_tutorial.ewc import EWC

DESIGN = Design(
    network=lambda seed: mlp(64, [8], 10, seed=seed),
    tasks=lambda seed: permuted_tasks(2, seed=seed),
    epochs=1,
)
WHY = dict.fromkeys(
    ("estimator", "curvature", "rule", "λ"), "because it was measured that it is best"
)


@pytest.fixture(scope="module")
def honest():
    searched = {lam: DESIGN.mean_after(lam, SEARCH_SEEDS) for lam in (0.0, 1.0, 30.0)}
    lam = max(searched, key=searched.get)
    runs = [DESIGN.run(lam, seed) for seed in REPORT_SEEDS]
    before, first, second = (statistics.mean(values) for values in zip(*runs, strict=True))
    gain, error = DESIGN.gain(lam)
    return Report(lam, searched, before, first, second, gain, error, WHY)


def test_a_run_is_what_a_loop_by_hand_gives():
    seed, lam = 3, 10.0
    first, second = permuted_tasks(2, seed=seed)
    model = mlp(64, [8], 10, seed=seed)
    train(model, first, epochs=1, lr=0.2, generator=seed)
    (before,) = accuracies(model, [first.test.tensors])
    ewc = EWC(model, lam)
    ewc.consolidate(first)
    train(model, second, epochs=1, lr=0.2, ewc=ewc, generator=seed + 1000)
    after = accuracies(model, [first.test.tensors, second.test.tensors])
    assert DESIGN.run(lam, seed) == (before, *after)


def test_the_gain_is_that_of_paired_runs():
    differences = [
        (sum(DESIGN.run(10.0, seed)[1:]) - sum(DESIGN.run(0.0, seed)[1:])) / 2
        for seed in REPORT_SEEDS
    ]
    gain, error = DESIGN.gain(10.0)
    assert gain == pytest.approx(statistics.mean(differences))
    assert error == pytest.approx((statistics.variance(differences) / 3) ** 0.5)


def test_an_honest_report_passes(honest):
    assert audit(DESIGN, honest) == []
    verdict = check("capstone", DESIGN, honest)
    assert verdict
    assert verdict.text.startswith("✓ Every number holds. Over plain fine-tuning ")


@pytest.mark.parametrize("name", ["before", "first", "second", "gain", "error"])
def test_each_number_is_recomputed(honest, name):
    wrong = replace(honest, **{name: getattr(honest, name) + 0.02})
    (sentence,) = audit(DESIGN, wrong)
    assert sentence.startswith(f"{name}: you say {getattr(wrong, name):.3f}, recomputed it is ")


def test_the_search_is_recomputed(honest):
    lam, value = next(iter(honest.searched.items()))
    assert (
        f"searched, λ = {lam:g}: you say"
        in audit(DESIGN, replace(honest, searched={**honest.searched, lam: value + 0.02}))[0]
    )
    few = replace(honest, searched={honest.lam: honest.searched[honest.lam]})
    assert "at least three λ" in audit(DESIGN, few)[0]


def test_another_lam_than_the_best_is_seen(honest):
    worst = min(honest.searched, key=honest.searched.get)
    found = audit(DESIGN, replace(honest, lam=worst))
    assert f"On the search seeds λ = {honest.lam:g} is better than λ = {worst:g}." in found


def test_what_is_missing_is_named(honest):
    assert audit(DESIGN, replace(honest, gain=..., error=...)) == ["Still to enter: gain, error."]
    assert audit(DESIGN, replace(honest, because={**WHY, "rule": "so"})) == [
        "A sentence is missing in `because` on rule."
    ]
    assert check("capstone", DESIGN, Report()).text.startswith("○ Not attempted yet")
