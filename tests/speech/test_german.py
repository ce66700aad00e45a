"""The German benchmark says what it is told to, and goes through the service to its end."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

import pandas as pd

from benchmarks import german_speech as german
from ewc_tutorial.course.reference import paired_difference
from ewc_tutorial.speech.audio import RATE
from ewc_tutorial.speech.base import tiny_recogniser

spoken = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def test_every_sentence_can_be_written_and_reads_as_german():
    texts = german.sentences(200, seed=1)
    assert len(set(texts)) > 150
    assert set("".join(texts)) <= {*german.LETTERS, " "}
    spelling = tiny_recogniser(0, german.LETTERS, width=8, layers=1).spelling
    assert all(spelling.clean(text, 200) == text for text in texts)
    # Who and does are the first phrases of each, in this order.
    who, does = german.PHRASES[:2]
    assert all(any(t.startswith(f"{w} {d} ") for w in who for d in does) for t in texts)


@spoken
def test_a_voice_says_a_sentence_at_16_khz_and_another_voice_says_it_otherwise():
    text = "die frau öffnet das fenster"

    def said(voice, seed=0):
        return german.say(text, voice, np.random.default_rng(seed))

    waves = [said(voice) for voice in (*german.OLD_VOICES, german.NEW_VOICE)]
    for wave in waves:
        assert 1.0 < len(wave) / RATE < 5.0
        assert np.abs(wave).max() <= 1.0
        assert wave.std() > 0.01, "noise alone has 0.003"
    np.testing.assert_array_equal(said(german.NEW_VOICE), waves[-1])
    assert len({len(wave) for wave in waves}) == len(waves)
    slow = german.Voice(german.OLD_VOICES[0].name, speed=80)
    assert len(said(slow)) > 1.5 * len(waves[0])


@spoken
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_that_has_learned_nothing_goes_through_and_is_not_served(monkeypatch):
    monkeypatch.setattr(german, "TRAININGS", {"hardly": {"steps": 1, "learning_rate": 1e-12}})
    size = german.Size(
        steps=1, first=8, old=15, corrections=5, old_tests=2, new_tests=2, width=8, layers=1
    )
    table = german.table_of(list(german.run_seed(0, size)))
    (row,) = table.itertuples()
    assert (row.state, row.fraction) == ("rejected", 0.0)
    assert row.tested_old == row.tested_old_before
    assert "| hardly |" in german.markdown(table)


def test_the_summary_pairs_the_seeds():
    runs = {
        "defaults": [(0.5, 0.2), (0.7, 0.1), (0.6, 0.3)],  # new voice, before and after
        "EWC": [(0.5, 0.3), (0.7, 0.4)],
    }
    table = german.table_of(
        [
            {"seed": seed, "training": name, "tested_old_before": 0.1, "tested_old": 0.1}
            | {"tested_new_before": before, "tested_new": after}
            for name, pairs in runs.items()
            for seed, (before, after) in enumerate(pairs)
        ]
    )
    # −30, −60 and −30 points: mean −40, deviation √300, over √3 seeds; then +10 and +30.
    assert german.summary(table) == [
        "| defaults | 3 | +0.0 ± 0.0 | -40.0 ± 10.0 | — |",
        "| EWC | 2 | +0.0 ± 0.0 | -25.0 ± 5.0 | +20.0 ± 10.0 |",
    ]


def test_the_committed_page_is_that_of_the_committed_table():
    table = pd.read_csv(german.RESULTS / "german_speech.csv")
    page = (german.RESULTS / "german_speech.md").read_text(encoding="utf-8")
    assert page == german.markdown(table)
    assert not table.duplicated(["seed", "training"]).any()


def test_the_docs_quote_the_committed_results():
    table = pd.read_csv(german.RESULTS / "german_speech.csv").set_index(["training", "seed"])
    text = " ".join((german.RESULTS.parents[1] / "docs" / "speech.md").read_text("utf-8").split())
    names = ["defaults", "replay and EWC", "EWC", "plain"]
    new, old = (
        {name: list(100 * table.loc[name][f"tested_{voice}"]) for name in names}
        | {"before": list(100 * table.loc["defaults"][f"tested_{voice}_before"])}
        for voice in ("new", "old")
    )

    def less(a: list[float], b: list[float]) -> str:
        mean, error = paired_difference(a, b)
        return f"{mean:.1f} ± {error:.1f}"

    for phrase in (
        f"rate fell by {less(new['before'], new['defaults'])} points",
        f"rose by {less(old['defaults'], old['before'])}, on",
        f"left the new voice {less(new['replay and EWC'], new['defaults'])} points higher",
        f"in its place {less(new['EWC'], new['defaults'])}, and",
        f"no protection at all {less(new['plain'], new['defaults'])}:",
    ):
        assert phrase in text


def test_in_the_committed_results_only_what_is_within_budget_is_served():
    table = pd.read_csv(german.RESULTS / "german_speech.csv")
    served = table[table.fraction > 0]
    assert (served.served_cost <= german.BUDGET).all()
    assert (served.served_new < served.new_before).all()
    over = table.trained_cost > german.BUDGET
    assert over.any(), "a training that is too hard is among them"
    assert (table[over].fraction < 1).all()
    defaults = table[table.training == "defaults"]
    assert (defaults.state == "done").all()
    assert (defaults.tested_new < defaults.tested_new_before).all()
