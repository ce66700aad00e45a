"""A diagonal that is measured group by group of parameters, for want of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class InGroups(Mapping[str, Tensor]):
    """The Fisher information by name, of which one group at a time is held.

    A group is measured when one of its names is looked at, and the one before is dropped: look at
    the names in their order.

    Args:
        sizes: how many weights each parameter has, by name.
        groups: how many groups to make, of about as many weights each.
        measure: returns the Fisher information of some names, the i-th group of them.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        groups: int,
        measure: Callable[[int, list[str]], Mapping[str, Tensor]],
    ) -> None:
        self._measure = measure
        self._held: Mapping[str, Tensor] = {}
        self._number: dict[str, int] = {}
        before, total = 0.0, sum(sizes.values())
        for name, size in sizes.items():
            middle = (before + size / 2) / max(1, total)
            self._number[name] = min(int(groups * middle), groups - 1)
            before += size

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._held:
            number = self._number[name]
            self._held = {}
            self._held = self._measure(number, [n for n, i in self._number.items() if i == number])
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._number

    def __iter__(self) -> Iterator[str]:
        return iter(self._number)

    def __len__(self) -> int:
        return len(self._number)
