"""What a training works with: earlier speech and corrections, each file looked at beforehand.

A file that cannot be used is left out, and a sentence says which and why: one damaged recording
must not stop the learning from all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ewc_tutorial import files
from ewc_tutorial.speech import audio
from ewc_tutorial.speech.errors import NotLearnedError, RefusedError
from ewc_tutorial.speech.folders import text_beside, text_of
from ewc_tutorial.speech.plan import Plan
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.samples import Recording


@dataclass
class Material:
    """Recordings with texts; in ``old``, which importance is measured on, some have none.

    Attributes:
        old, old_tests: earlier speech, to hold on to and to measure on.
        new, new_tests: corrections, to learn from and to measure on.
        left_out: a sentence per recording that cannot be used.
    """

    old: list[Recording] = field(default_factory=list)
    old_tests: list[Recording] = field(default_factory=list)
    new: list[Recording] = field(default_factory=list)
    new_tests: list[Recording] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return how many recordings there are of each kind."""
        return {
            "old_for_importance": len(self.old),
            "old_for_measuring": len(self.old_tests),
            "new_for_training": len(self.new),
            "new_for_measuring": len(self.new_tests),
            "left_out": len(self.left_out),
        }


class Reader:
    """Looks at recordings and keeps what a model can use.

    Args:
        recogniser: the model that is to be trained.
        max_seconds: the longest recording.
        language: that texts are normalised in; None leaves them as they are.
    """

    def __init__(
        self, recogniser: Recogniser, max_seconds: float, language: str | None = None
    ) -> None:
        self._recogniser = recogniser
        self._max_seconds = max_seconds
        self._language = language
        self.left_out: list[str] = []

    def corrections(self, paths: Iterable[Path]) -> list[Recording]:
        """Return those that can be decoded and have a text which fits them."""
        pairs = ((path, *self._seen(path)) for path in paths)
        return [(path, text) for path, whole, text in pairs if whole and text is not None]

    def earlier_speech(self, paths: Iterable[Path]) -> list[Recording]:
        """Return those that can be decoded; importance needs no text, so None stands for one that
        is missing or cannot be used."""
        pairs = ((path, *self._seen(path, text_needed=False)) for path in paths)
        return [(path, text) for path, whole, text in pairs if whole]

    def _seen(self, path: Path, text_needed: bool = True) -> tuple[bool, str | None]:
        try:
            clip, _ = audio.decode(path, self._max_seconds)
            if text_needed:
                self._recogniser.check_length(clip.seconds)
        except RefusedError as error:
            self.left_out.append(f"{_shown(path)}: {error.sentence}")
            return False, None
        if not text_needed and text_beside(path) is None:
            return True, None
        try:
            text = self._recogniser.spelling.clean(text_of(path), 10**6, self._language)
            self._recogniser.check_room(text, clip.seconds)
        except RefusedError as error:
            why = error.sentence
        except UnicodeDecodeError:
            why = "text is not in UTF-8."
        except OSError as error:
            why = f"text cannot be read: {error.strerror}."
        else:
            return True, text
        use = "" if text_needed else " It counts for the importance alone."
        self.left_out.append(f"{_shown(path)}: {why}{use}")
        return True, None


def _shown(path: Path) -> str:
    return "/".join(path.parts[-2:])


def digest(path: Path) -> str:
    """Return what stands for a recording: of its sound, for files are moved, renamed and packed."""
    about = path.stat()
    return _digest(path, about.st_mtime_ns, about.st_size)


@cache
def _digest(path: Path, *_: int) -> str:
    return audio.fingerprint(audio.read(path))[:24]


def _digests(recordings: Iterable[Recording]) -> dict[Path, str]:
    """Return what stands for each recording, but for those that were deleted meanwhile."""
    found = {}
    for path, _ in recordings:
        if isinstance(path, Path):
            with suppress(OSError, RefusedError):
                found[path] = digest(path)
    return found


def without(recordings: Sequence[Recording], others: Sequence[Recording]) -> list[Recording]:
    """Return the recordings whose sound is not among others: nothing is learned and measured on."""
    digests, elsewhere = _digests(recordings), {None, *_digests(others).values()}
    return [pair for pair in recordings if digests.get(pair[0]) not in elsewhere]


def some(recordings: Sequence[Recording], n: int) -> list[Recording]:
    """Return ``n`` recordings at most. Which ones depends on their content alone, so it hardly
    changes when others come or go."""
    digests: Mapping[Any, str] = _digests(recordings)
    here = [pair for pair in recordings if pair[0] in digests]
    return sorted(here, key=lambda pair: digests[pair[0]])[:n]


@dataclass(frozen=True)
class Measured:
    """What an importance was measured on, kept beside it as ``importance.json``.

    Attributes:
        kind: those settings that another importance would have.
        samples: how many recordings it was measured on, drawn from ``old``.
        old, old_tests: digests of the earlier speech at that time.
    """

    kind: dict[str, Any]
    samples: int
    old: list[str]
    old_tests: list[str]

    @staticmethod
    def kind_of(plan: Plan) -> dict[str, Any]:
        return {
            "curvature": plan.curvature,
            "freeze_encoder": plan.freeze_encoder,
            "lora": plan.lora_rank > 0,
        }

    @classmethod
    def beside(cls, importance: Path | None) -> Measured | None:
        """Return what belongs to a file of importance, or None."""
        if importance is None:
            return None
        try:
            return cls(**json.loads(importance.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, importance: Path) -> None:
        """Keep this for a file of importance that is about to be made; an old one is removed."""
        importance.unlink(missing_ok=True)
        content = json.dumps(asdict(self)).encode()
        files.replace_file(importance.with_suffix(".json"), content)


def split_old(
    old: Sequence[Recording], max_tests: int, plan: Plan, known: Measured | None
) -> tuple[list[Recording], list[Recording], Measured, bool]:
    """Share earlier speech out between importance and measuring.

    A third at most of what has a text is for measuring, and nothing is for both, unless there is
    only one recording. Which is which depends on the content alone, so it hardly changes when
    recordings come or go. A stored importance is used again if it saw all that is here now; then
    what was kept from it is for measuring.

    Returns:
        What importance is measured on, what to measure on, the record for it, and whether the
        stored importance will do.
    """
    digests: Mapping[Any, str] = _digests(old)
    old = [pair for pair in old if pair[0] in digests]
    order = sorted(old, key=lambda pair: (digests[pair[0]], str(pair[0])))
    if known is not None and known.kind == Measured.kind_of(plan):
        seen, kept_out = set(known.old), set(known.old_tests)
        here = set(digests.values())
        enough = known.samples >= min(plan.fisher_samples, len(here & seen))
        if here <= seen | kept_out and enough:
            tests = [pair for pair in order if digests[pair[0]] in kept_out and pair[1] is not None]
            rest = [pair for pair in order if digests[pair[0]] not in kept_out] or order
            return rest, tests[:max_tests], known, True
    if not old:
        raise NotLearnedError(
            "There is no earlier speech, and no importance that was measured with "
            f"{Measured.kind_of(plan)}."
        )
    with_text = [pair for pair in order if pair[1] is not None]
    n_tests = min(max_tests, max(1, len(with_text) // 3)) if with_text else 0
    tests = with_text[:n_tests]
    kept_out = {digests[pair[0]] for pair in tests}  # and with them what has the same sound
    rest = [pair for pair in order if digests[pair[0]] not in kept_out] or order
    record = Measured(
        Measured.kind_of(plan),
        min(plan.fisher_samples, len(rest)),
        [digests[pair[0]] for pair in rest],
        sorted(kept_out),
    )
    return rest, tests, record, False
