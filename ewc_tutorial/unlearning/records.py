"""What unlearning must keep of every task, in memory or in a folder that survives a crash.

A folder holds one file of tensors per task, one with the model's weights, and ``manifest.json``,
which says which files count. A change writes new files first and then replaces the manifest in one
step, so that whoever opens the folder finds the state before or the state after, never half of it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ewc_tutorial import files
from ewc_tutorial.precision import double

MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class TaskRecord:
    """What one task left behind; all tensors on the CPU.

    Attributes:
        task: its name.
        before, after: the trainable parameters when the task began, and when it was consolidated.
        fisher: the Fisher information of the protected parameters at ``after``, as measured.
        weight: what the Fisher was multiplied by when it was merged.
    """

    task: str
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    fisher: dict[str, Tensor]
    weight: float = 1.0

    @property
    def update(self) -> dict[str, Tensor]:
        """Δ = after − before per parameter, in float64: the sum of all the task's steps."""
        return {name: double(self.after[name]) - double(self.before[name]) for name in self.after}

    @property
    def n_bytes(self) -> int:
        """Memory that the tensors take."""
        parts = (self.before, self.after, self.fisher)
        return sum(t.numel() * t.element_size() for part in parts for t in part.values())


class MemoryRecords:
    """Records in main memory, gone with the process."""

    def __init__(self) -> None:
        self._records: dict[str, TaskRecord] = {}
        self.forgotten: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of learning."""
        return tuple(self._records)

    def __getitem__(self, task: str) -> TaskRecord:
        return self._records[task]

    def commit(
        self,
        tasks: Sequence[str],
        changed: Mapping[str, TaskRecord],
        forgotten: Sequence[str],
        weights: Mapping[str, Tensor],
    ) -> None:
        """Make ``tasks`` the records from now on, those of ``changed`` new or in a new version.

        Args:
            tasks: names, in the order of learning.
            changed: name → record.
            forgotten: names of all tasks that were unlearned.
            weights: the model's trainable parameters afterwards; only a folder keeps them.
        """
        self._records = {task: changed.get(task) or self._records[task] for task in tasks}
        self.forgotten = tuple(forgotten)


class FolderRecords:
    """Records in a folder: see the module's text.

    Args:
        folder: is made if it does not exist.

    Raises:
        ValueError: its manifest cannot be read, or is of an unknown version.
    """

    VERSION = 1

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, str] = {}
        self._weights = ""
        self.forgotten: tuple[str, ...] = ()
        path = self.folder / MANIFEST
        if path.exists():
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                if manifest["version"] != self.VERSION:
                    raise ValueError(f"version {manifest['version']!r}")
                self._files = dict(manifest["tasks"])
                self._weights, self.forgotten = manifest["weights"], tuple(manifest["forgotten"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is no manifest of version {self.VERSION} ({error}): take another "
                    "folder, or one that TaskMemory wrote."
                ) from error
            self._sweep()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of learning."""
        return tuple(self._files)

    def __getitem__(self, task: str) -> TaskRecord:
        return TaskRecord(task=task, **self._read(self._files[task]))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's trainable parameters at the last change of the records."""
        return self._read(self._weights)

    def commit(
        self,
        tasks: Sequence[str],
        changed: Mapping[str, TaskRecord],
        forgotten: Sequence[str],
        weights: Mapping[str, Tensor],
    ) -> None:
        """As :meth:`MemoryRecords.commit`; on the disk the change happens whole or not at all."""
        names = {}
        try:
            for task in tasks:
                if task in changed:
                    record = vars(changed[task]).copy()
                    del record["task"]
                    names[task] = self._write(record)
                else:
                    names[task] = self._files[task]
            manifest = {
                "version": self.VERSION,
                "tasks": names,
                "forgotten": list(forgotten),
                "weights": self._write(dict(weights)),
            }
            text = json.dumps(manifest, ensure_ascii=False, indent=1)
            files.replace_file(self.folder / MANIFEST, text.encode())
        except BaseException:
            self._sweep()  # what the old manifest does not name
            raise
        self._files, self._weights = names, str(manifest["weights"])
        self.forgotten = tuple(forgotten)
        self._sweep()

    def _write(self, tensors: dict[str, Any]) -> str:
        name = f"{uuid.uuid4().hex}.pt"
        # A view would drag all of its storage into the file.
        with files.synced(self.folder / name) as file:
            torch.save(tensors, file)
        return name

    def _read(self, name: str) -> dict[str, Any]:
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)

    def _sweep(self) -> None:
        """Delete the files of tensors that the manifest does not name, and half a manifest."""
        named = {*self._files.values(), self._weights}
        for path in (*self.folder.glob("*.pt"), *self.folder.glob(f".{MANIFEST}.*.part")):
            if path.name not in named:
                path.unlink(missing_ok=True)
