"""Exercises of notebook 10, A speech recogniser that learns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _paths() -> list[tuple[list[int], int]]:
    return [
        ([0, 3, 3, 0, 0, 5, 5, 5, 0], 0),
        ([4, 4, 0, 4, 2, 2, 0, 2], 0),
        ([1, 2, 1, 1, 2, 2, 1], 0),
        ([7, 1, 7, 7, 1, 1, 7, 2], 7),
        ([0, 0, 0], 0),
        ([6], 0),
    ]


def _sentences() -> list[tuple[list[str], list[str]]]:
    pairs = [
        ("the old lion rests", "the old lion rests"),
        ("the old lion rests", "the lion rests"),
        ("the old lion rests", "the old red lion rests"),
        ("old lion", "lion old"),
        ("lion", "the lion is old"),
        ("the wind is in the tower", "wind is the winter"),
        ("sea sand sea", "sand sea sea salt"),
        ("rain hides", ""),
    ]
    return [(text.split(), heard.split()) for text, heard in pairs]


def _steps() -> list[tuple[list[str]]]:
    good = ["write", "sync file", "rename", "sync folder", "answer"]
    return [
        (good,),
        (good[:-1],),
        (["write", "sync file", "rename", "answer", "sync folder"],),
        (["write", "rename", "sync file", "sync folder", "answer"],),
        (["write", "rename"],),
        (["write", "sync file", "sync folder", "rename", "answer"],),
        (["write", "sync file", "write", "rename", "sync folder", "answer"],),
        (["write", "sync file", "rename"],),
        (["write", "answer"],),
        ([],),
        (["write", "sync file", "sync folder", "rename", "sync folder", "answer"],),
    ]


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


def _without_rule(rule: str) -> Callable[[list[str]], bool]:
    """Return a wrong ``promise_kept`` that does not look at one thing."""

    def wrong(steps: list[str]) -> bool:
        content, renamed, name = False, False, False
        for step in steps:
            if step == "write":
                content = content and rule == "writes again"
            elif step == "sync file":
                content = True
            elif step == "rename":
                if not content and rule != "content":
                    return False
                renamed = True
            elif step == "sync folder":
                name = renamed or rule == "order of folder"
            elif step == "answer" and not (renamed if rule == "folder" else name):
                return False
        return True

    return wrong


EXERCISES: dict[str, Exercise] = {
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
    "promise_kept": Exercise(
        answer=reference.promise_kept,
        cases=_steps,
        mistakes={
            "You ask whether all steps are there, not in which order they come.": (
                lambda steps: len({*steps}) == 5
            ),
            "A rename can reach the disk before the content does. After a power cut the name is "
            "there and the file is empty: sync the file before it gets its name.": (
                _without_rule("content")
            ),
            "The new name stands in the folder, and the folder, too, must be synced before the "
            "answer goes out.": _without_rule("folder"),
            "A sync makes safe what was there before it: here the folder is synced too early.": (
                _without_rule("order of folder")
            ),
            "What is written after the sync is not safe: a new write needs a new sync.": (
                _without_rule("writes again")
            ),
            "Without an answer nothing was promised. Only half a file under its final name would "
            "break a promise then.": (
                lambda steps: "answer" in steps and reference.promise_kept(steps)
            ),
        },
    ),
}
