"""A Python that has nothing but some packages and what they need: what a user of those has.

    python alone.py PACKAGES PROGRAM

Everything else that is installed here cannot be imported by the program.
"""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typing import Any


def needed_by(packages: list[str]) -> set[str]:
    """Return the names, as distributions spell them, of packages and of all that they require."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # for another system
            continue
        waiting += [re.match(r"[\w.-]+", line).group() for line in lines if "extra ==" not in line]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Without:
    """A finder of modules to which some of them are not installed."""

    def __init__(self, finder: Any, absent: set[str]) -> None:
        self._finder, self._absent = finder, absent

    def find_spec(self, name: str, *rest: Any) -> ModuleSpec | None:
        absent = name.partition(".")[0] in self._absent
        return None if absent else self._finder.find_spec(name, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def hide_all_but(packages: list[str]) -> None:
    """Let nothing else that is installed be found, but what these packages need."""
    kept = needed_by(packages)
    absent = {
        module
        for module, owners in packages_distributions().items()
        if not kept & set(map(normal, owners))
    }
    absent -= {"ewc_tutorial", *sys.stdlib_module_names}
    sys.meta_path[:] = [Without(finder, absent) for finder in sys.meta_path]


if __name__ == "__main__":
    hide_all_but(sys.argv[1].split(","))
    exec(sys.argv[2])
