"""The programs behind one interface are those of the gallery; a written test is judged on them."""

from __future__ import annotations

import re

import pytest
import torch

from ewc_tutorial.course import programs
from ewc_tutorial.course.bugs import BUGS
from ewc_tutorial.course.exercises import EXERCISES
from ewc_tutorial.course.exercises.written import WrittenTest

EXERCISE = EXERCISES["test_of_ewc"]


def test_they_are_the_fourteen_mistakes_that_need_no_grown_head():
    assert set(programs.FAULTY) == set(BUGS) - {"head of another shape"}
    assert len(programs.FAULTY) == 14


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_careful_test_catches_all_and_passes_what_is_correct(seed):
    verdict = EXERCISE.judge(programs.careful_test, seed=seed)
    assert verdict, verdict.text
    assert "14 of 14 mistakes caught" in verdict.text
    assert "undetected" not in verdict.text


@pytest.mark.slow
@pytest.mark.parametrize("name", [*programs.FAULTY, *programs.CORRECT])
def test_a_program_is_fresh_and_in_training_mode(name):
    first, second = programs.made(name), programs.made(name)
    assert first.model.training
    with torch.no_grad():
        for p in first.model.parameters():
            p.add_(1.0)
    assert second.penalty().item() == 0
    first.backward([second.new])
    assert all(p.grad is None for p in second.model.parameters())


def by_batch_size(program):
    once, other = (program.measure(program.old, size) for size in (8, 16))
    assert all(torch.allclose(once[n], other[n], rtol=0.05) for n in once), "batch size"


def by_known_step(program):
    with torch.no_grad():
        for p in program.model.parameters():
            p.add_(1.0)
    F = program.fisher.values()
    return torch.isclose(program.penalty(), program.lam / 2 * sum(part.sum() for part in F))


def by_all_names(program):
    assert len(program.fisher) == len(list(program.model.parameters()))


def by_labels(program):
    x, y = program.old
    one, other = (program.measure((x, (y + k) % 10)) for k in (0, 1))
    assert not all(torch.allclose(one[n], other[n]) for n in one)


def todo(program):
    raise NotImplementedError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "words"),
    [
        (by_batch_size, "✗ 4 of 14 mistakes caught: squared batch mean, batch-size weighting, "),
        (by_batch_size, "It passes all 4 correct programs. Catch at least 8."),
        (by_known_step, "mistakes caught: live reference, names that never match, missing ½."),
        (by_all_names, "✗ It cries wolf: the program “the head left free” is correct, and your "),
        (
            by_labels,
            "✗ It cries wolf: the program “exact F” is correct, and your test raises Asser",
        ),
        (lambda program: False, "✗ It cries wolf: the program “empirical F” is correct."),
        (lambda program: program.nothing, "your test raises AttributeError: 'Program' object has"),
        (lambda program: True, "✗ All 14 faulty programs pass your test."),
        (lambda program: ..., "○ Not attempted yet"),
        (todo, "○ Not attempted yet"),
    ],
)
def test_verdicts_on_written_tests(test, words):
    assert words in EXERCISE.judge(test).text


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (lambda program: pytest.fail("no"), "✗ It cries wolf.*your test raises Failed: no"),
        (lambda program: torch.ones(2) > 0, "✗ It cries wolf.*your test raises RuntimeError: Bool"),
        (lambda program: raise_exit(), "✗ It cries wolf.*your test raises SystemExit"),
    ],
)
def test_however_a_written_test_fails_there_is_a_verdict(test, words):
    exercise = WrittenTest(test, lambda name, seed: name, ("faulty",), ("correct",), 1)
    assert re.match(words, exercise.judge(test).text)


def test_ctrl_c_is_no_verdict_on_a_written_test():
    def interrupted(program):
        raise KeyboardInterrupt

    exercise = WrittenTest(interrupted, lambda name, seed: name, ("faulty",), ("correct",), 1)
    with pytest.raises(KeyboardInterrupt):
        exercise.judge(interrupted)


def raise_exit():
    raise SystemExit


def test_a_verdict_does_not_move_the_global_random_state():
    state = torch.get_rng_state()
    WrittenTest(by_batch_size, programs.made, ("train mode",), ("empirical F",), 1).judge(
        by_known_step
    )
    assert torch.equal(torch.get_rng_state(), state)
