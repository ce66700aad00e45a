"""Exercises of notebook 10, A speech recogniser that learns."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise, Prediction, Question


def _paths(seed: int) -> list[tuple[list[int], int]]:
    """Return paths in which every rule of the collapse matters, and some that are drawn."""
    draw = random.Random(seed)
    drawn = [(draw.choices(range(4), k=12), blank) for blank in (0, 2, 3)]
    fixed = [
        ([0, 3, 3, 0, 0, 5, 5, 5, 0], 0),
        ([4, 4, 0, 4, 2, 2, 0, 2], 0),
        ([7, 1, 7, 7, 1, 1, 7, 2], 7),
        ([0, 0, 0], 0),
    ]
    return fixed + drawn


def _sentences(seed: int) -> list[tuple[list[str], list[str]]]:
    draw = random.Random(seed)
    words = ["the", "old", "lion", "rests", "in", "sea", "sand"]
    drawn = [(draw.choices(words, k=k), draw.choices(words, k=16 - k)) for k in (7, 8, 9)]
    pairs = [
        ("the old lion rests", "the old red lion rests"),
        ("old lion", "lion old"),
        ("lion", "the lion is old"),
        ("the wind is in the tower", "wind is the winter"),
        ("rain hides", ""),
    ]
    return [(text.split(), heard.split()) for text, heard in pairs] + drawn


def _grids(seed: int) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """Draw error rates and drifts over seven λ in any order; nothing is allowed in the last case.

    From the third λ on the drift is allowed. Of these the fourth has the least error, the fifth a
    little more error and less drift, the sixth the least drift; the first has the least error of
    all.
    """
    g = torch.Generator().manual_seed(seed)
    cases = []
    for most in (0.3, 0.2, 0.0):
        order = torch.randperm(7, generator=g)
        drift = torch.tensor([0.30, 0.25, 0.0, -0.05, -0.13, -0.15, -0.12]) + max(most, 0.25)
        new = torch.tensor([0.0, 0.1, 0.20, 0.10, 0.14, 0.30, 0.50]) + 0.1 * torch.rand(
            1, generator=g
        )
        new = new + 0.02 * torch.rand(7, generator=g)
        scale = 1 + torch.rand(1, generator=g)
        limit = drift[2].item() if most else 0.0
        cases.append((scale * 10.0**order, new[order], drift[order], limit))
    return cases


def _chosen(score: Callable[..., Tensor]) -> Callable[..., float]:
    """Return a wrong ``lam_by_drift`` that takes the allowed λ with another least score."""

    def wrong(lambdas: Tensor, new: Tensor, drift: Tensor, most: float) -> float:
        allowed = drift <= most
        if not allowed.any():
            return lambdas.max().item()
        return lambdas[allowed][score(lambdas, new, drift)[allowed].argmin()].item()

    return wrong


def _by_position(text: list[str], heard: list[str]) -> float:
    wrong = sum(a != b for a, b in zip(text, heard, strict=False))
    return (wrong + abs(len(text) - len(heard))) / len(text)


def _with_changes(
    replace: int = 1, insert: int = 1, per: Callable[..., float] | None = None
) -> Callable[[list[str], list[str]], float]:
    """Return a wrong error rate: with other costs, or per something else than the text's words."""

    def wrong(text: list[str], heard: list[str]) -> float:
        errors = [[i + insert * j for j in range(len(heard) + 1)] for i in range(len(text) + 1)]
        for i, a in enumerate(text, start=1):
            for j, b in enumerate(heard, start=1):
                errors[i][j] = min(
                    errors[i - 1][j - 1] + replace * (a != b),
                    errors[i - 1][j] + 1,
                    errors[i][j - 1] + insert,
                )
        return errors[-1][-1] / (per(text, heard) if per else len(text))

    return wrong


EXERCISES: dict[str, Question] = {
    "ctc_collapse": Exercise(
        answer=reference.ctc_collapse,
        cases=_paths,
        mistakes={
            "You remove the blanks first and merge afterwards, so double letters are lost: the "
            "blank between the two l of 'hill' is there to keep them apart. Merge first.": (
                lambda path, blank: [s for s, _ in groupby(s for s in path if s != blank)]
            ),
            "The repeats are still there: one sound lasts for several frames, and each frame says "
            "its letter again.": lambda path, blank: [s for s in path if s != blank],
            "The blanks are still there. They are no letter.": (
                lambda path, blank: [s for s, _ in groupby(path)]
            ),
            "Every symbol comes at most once in your text. Only *neighbours* are merged.": (
                lambda path, blank: [s for s in dict.fromkeys(path) if s != blank]
            ),
            "You take 0 for the blank. Its number is the second argument.": (
                lambda path, blank: [s for s, _ in groupby(path) if s != 0]
            ),
        },
    ),
    "word_error_rate": Exercise(
        answer=reference.word_error_rate,
        cases=_sentences,
        mistakes={
            "You compare word by word in the same place. One missing word then makes all the "
            "following ones wrong, which they are not.": _by_position,
            "You divide by the number of words that were heard. The rate is per word of the right "
            "text, or a recogniser could improve it by talking more.": (
                _with_changes(per=lambda text, heard: max(1, len(heard)))
            ),
            "You divide by the longer of the two. The rate is per word of the right text, and so "
            "may be larger than one.": _with_changes(
                per=lambda text, heard: max(map(len, (text, heard)))
            ),
            "Insertions cost nothing in your count: words that nobody said are errors, too.": (
                _with_changes(insert=0)
            ),
            "A wrong word counts twice in your count, as a deletion and an insertion. Replacing "
            "it is one change.": _with_changes(replace=2),
            "You count errors. Divide by the number of words in the right text.": (
                lambda text, heard: reference.word_error_rate(text, heard) * len(text)
            ),
        },
    ),
    "lam_by_drift": Exercise(
        answer=reference.lam_by_drift,
        cases=_grids,
        mistakes={
            "That is the λ with the least error on the new voice, wherever the old ones are: look "
            "only at those that drift no further than is allowed.": (
                lambda lambdas, new, drift, most: lambdas[new.argmin()].item()
            ),
            "That is the largest λ, the safest of all, where something else is allowed.": (
                lambda lambdas, new, drift, most: lambdas.max().item()
            ),
            "That takes the smallest λ that is allowed. It need not be the one with the least "
            "error: look at `new`.": _chosen(lambda lambdas, new, drift: lambdas),
            "That takes the λ that drifts least. What is allowed is allowed: among these the new "
            "voice decides.": _chosen(lambda lambdas, new, drift: drift),
            "That weighs the drift a second time. It has done its part when it is small enough.": (
                _chosen(lambda lambdas, new, drift: new + drift)
            ),
        },
    ),
    "frozen_encoder": Prediction(
        why=(
            "35 of 100, ten more than with the encoder. What is new in Dora's voice is in the\n"
            "sound: overtones that fall where other letters have their high tone. The encoder\n"
            "turns sound into features, so a frozen one leaves more of her words wrong. It does\n"
            "not leave all of them wrong: much can be mended in the layers above."
        ),
        unit=" of 100",
        mistakes={
            "That is the error before any training: the layers above the encoder do learn.": (
                lambda measured: 85.0
            ),
            "That would be as good as training everything. But the encoder is what hears her.": (
                lambda measured: 25.0
            ),
        },
        within=4.0,
    ),
}
