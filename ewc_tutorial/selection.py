"""Which parameters are protected: names by shell patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def select(
    names: list[str], include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    """Return those of the names that are to be protected.

    Raises:
        ValueError: there is no name, a pattern matches none, or none is left.
    """
    if not names:
        raise ValueError("model must have at least one trainable parameter, but it has none.")
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in _patterns(patterns):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"{argument} pattern {pattern!r} matches no trainable parameter; there are "
                    f"{', '.join(names)}."
                )
    selected = matching(names, include, exclude)
    if not selected:
        raise ValueError(
            f"include={include!r} and exclude={exclude!r} leave no parameter to protect."
        )
    return selected


def matching(
    names: list[str], include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    """Return those names that a pattern of ``include`` matches, and none of ``exclude``."""

    def match(name: str, patterns: str | Sequence[str] | None) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in _patterns(patterns))

    return [n for n in names if (include is None or match(n, include)) and not match(n, exclude)]


def _patterns(patterns: str | Sequence[str] | None) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns or []
