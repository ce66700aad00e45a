"""A Python that has nothing but some packages and what they need: what a user of those has.

    python alone.py PACKAGES PROGRAM

Everything else that is installed here cannot be imported by the program.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires


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


class OnlyThese:
    """Finds nothing, and stops the search for what does not belong to the packages."""

    def __init__(self, packages: list[str]) -> None:
        allowed = needed_by(packages)
        self._others = {
            module
            for module, owners in packages_distributions().items()
            if not allowed & set(map(normal, owners))
        } - {"ewc_tutorial"}

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in self._others - sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, OnlyThese(sys.argv[1].split(",")))
    exec(sys.argv[2])
