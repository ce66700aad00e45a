"""Uploads to a service with its index on a PostgreSQL server, which is killed again and again."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from benchmarks.speech_kills import Attack, Outcome, digest, judge, recording, text


def test_the_judge_of_the_attack_sees_what_is_wrong():
    there = [
        {
            "seq": i + 1,
            "id": f"{i}",
            "sha256": digest(recording(i)),
            "text": text(i),
            "sent": text(i),
        }
        for i in range(4)
    ]
    answered = dict(enumerate(there[:3]))  # the last one was sent, but got no answer

    def judged(rows, answers=answered, files=None):
        on_disk = {row["id"]: (row["sha256"], row["sent"]) for row in rows}
        return judge(5, 2, 1, answers, rows, on_disk if files is None else files)

    good = Outcome(5, 2, 3, 1, lost=0, doubled=0, mixed_up=0, damaged=0)
    assert judged(there) == good
    assert judged(there[1:]) == replace(good, lost=1)
    assert judged([*there, there[1] | {"seq": 9, "id": "9"}]) == replace(good, doubled=1)
    assert judged([*there[:3], there[3] | {"seq": 1}]) == replace(good, doubled=1)
    assert judged([*there[:3], there[3] | {"text": text(0)}]) == replace(good, mixed_up=1)
    assert judged([there[0] | {"text": text(1)}, *there[1:]]) == replace(good, mixed_up=2)
    swapped = {0: there[1], 1: there[0], 2: there[2]}
    assert judged(there, swapped) == replace(good, mixed_up=2)
    assert judged(there, files={}) == replace(good, damaged=4)
    assert len({text(i) for i in range(2000)}) == 2000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_lose_double_and_mix_up_nothing(server, tmp_path, settings):
    place = {"database": server.new("kills"), "old": tmp_path / "none"}
    outcome = Attack(tmp_path, uploads=100, kills=3, seed=0, settings=settings | place).run()
    assert outcome == replace(outcome, lost=0, doubled=0, mixed_up=0, damaged=0)
    assert outcome.answered >= 90
    assert outcome.resent > 0
