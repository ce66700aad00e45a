"""What a diagnosis says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ewc_tutorial.console import printable

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: printed as a sentence."""

    name: str
    measured: str
    advice: str

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.measured}; {self.advice}.")


NOTHING_CONSOLIDATED = Finding(
    "nothing consolidated",
    "no task has been consolidated, so the penalty is zero",
    "call ewc.consolidate(old_data) after the old task",
)


@dataclass(repr=False)
class Diagnosis:
    """What :func:`diagnose` found, what it looked at, and what it could not look at.

    It is true if nothing was found, so a test can say ``assert diagnose(…)``; iterated over, it
    gives its findings.

    Attributes:
        findings: empty if nothing was found.
        checked: names of the checks that were made.
        skipped: check → what it would need.
    """

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __bool__(self) -> bool:
        """True if all is well: nothing was found, in the checks that were made."""
        return not self.findings

    def __repr__(self) -> str:
        lines = [f"✗ {finding}" for finding in self.findings]
        if not lines:
            lines = [f"✓ Nothing found. Checked: {', '.join(self.checked)}."]
        lines += [f"○ Not checked: {check} ({why})." for check, why in self.skipped.items()]
        return printable("\n".join(lines))
