"""Forgetting on purpose: take a task back out of the weights and out of EWC's memory.

A task t leaves three things behind: its update of the weights, Δ_t = θ_after − θ_before; its own
quadratic (F_t, θ_t) in the :class:`~ewc_tutorial.ewc.EWC`; and Δ_t once more in the anchors θ_s of
all later tasks. :class:`TaskMemory` records the first two and takes back all three.

Subtracting recorded updates is *amnesiac* unlearning (Graves, Nagisetty and Ganesh 2021; there per
batch, here per task). It restores the earlier weights exactly if nothing was learned since.
Otherwise it is an approximation: the later steps were computed at weights that contained Δ_t, and
no subtraction computes them anew. Notebook 11 measures what remains.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.ewc import EWC
from ewc_tutorial.precision import double
from ewc_tutorial.unlearning.records import FolderRecords, MemoryRecords, TaskRecord


class TaskMemory:
    """Keep what is needed to unlearn single tasks of a model that an :class:`EWC` protects.

    ::

        memory = TaskMemory(ewc)              # or TaskMemory(ewc, folder="records")
        for name, data in tasks.items():
            memory.begin(name)
            …                                 # train, with the penalty of ewc
            memory.consolidate(data)          # in place of ewc.consolidate(data)
        memory.forget("B")

    Under every rule the EWC is afterwards what it would be had it never met the task: the merges
    of the kept tasks are replayed, so no rounding errors of a subtraction build up in S.

    A record takes two copies of the trainable parameters and one of F, on the CPU or on disk; an
    EWC without a ``TaskMemory`` keeps nothing of the kind. Records are themselves traces of the
    data: ``forget`` deletes them, but it cannot delete backups, checkpoints of yours, or the state
    of an optimizer (make a new one).

    Args:
        ewc: before its first :meth:`~ewc_tutorial.ewc.EWC.consolidate`, of any rule and curvature.
        folder: keep the records there instead of in main memory; see :meth:`load`. A folder
            belongs to one ``TaskMemory`` at a time.

    Raises:
        ValueError: the EWC has consolidated tasks already, the folder holds records, or the model
            has layers with running statistics, whose updates cannot be subtracted.
    """

    def __init__(self, ewc: EWC, folder: str | os.PathLike[str] | None = None) -> None:
        if ewc.n_tasks:
            raise ValueError(
                f"ewc has consolidated {ewc.n_tasks} task(s) that no record exists of: make the "
                "TaskMemory before the first consolidate()."
            )
        for name, module in ewc.model.named_modules():
            if getattr(module, "track_running_stats", False):
                raise ValueError(
                    f"Layer {name!r} ({type(module).__name__}) keeps running statistics, and a "
                    "variance less an update can be negative: use a layer without them, such as "
                    "LayerNorm or GroupNorm."
                )
        self.ewc = ewc
        self._records = MemoryRecords() if folder is None else FolderRecords(folder)
        self._open: tuple[str, dict[str, Tensor]] | None = None
        #: Parameters that a task has trained, which may be frozen by now, as the head of one is.
        self._trained: set[str] = set()
        if self._records.tasks or self._records.forgotten:
            raise ValueError(
                f"folder {str(folder)!r} holds the records of {_listed(self.tasks)}: continue them "
                "with TaskMemory.load(ewc, folder), or take an empty folder."
            )

    @classmethod
    def load(cls, ewc: EWC, folder: str | os.PathLike[str]) -> TaskMemory:
        """Continue after a restart: set model and EWC to the state at the folder's last change.

        Args:
            ewc: a new one that protects the names of before; its rule may be another, as the
                merges are replayed. Its model's parameters have the recorded names and shapes;
                those always frozen, and buffers, are not recorded.
            folder: what an earlier ``TaskMemory`` was given.

        Raises:
            ValueError: as the constructor; or there are no records, or they do not fit the model
                (nothing is changed then).
        """
        records = FolderRecords(folder)
        if not records.tasks and not records.forgotten:
            raise ValueError(f"folder {str(folder)!r} has no records: use TaskMemory(ewc, folder).")
        memory = cls(ewc)
        weights, parameters = records.weights, dict(ewc.model.named_parameters())
        for name, value in weights.items():
            if name not in parameters or parameters[name].shape != value.shape:
                found = tuple(parameters[name].shape) if name in parameters else "missing"
                raise ValueError(
                    f"The records have a parameter {name!r} of shape {tuple(value.shape)}, but in "
                    f"the model it is {found}: build the model as it was, its head grown as far."
                )
        for task in records.tasks[:1]:
            if (recorded := records[task].fisher.keys()) != ewc.shapes().keys():
                raise ValueError(
                    f"The records protect other parameters than this EWC: "
                    f"{', '.join(sorted(recorded ^ ewc.shapes().keys()))}."
                )
        memory._records = records
        memory._trained = {*weights}
        memory._replay(records[task] for task in records.tasks)
        _assign(parameters, weights)
        return memory

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that can be forgotten, in the order of learning."""
        return self._records.tasks

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Names of the tasks that were forgotten, in the order of forgetting."""
        return self._records.forgotten

    def __getitem__(self, task: str) -> TaskRecord:
        """Return what is recorded of a task.

        Raises:
            KeyError: it is unknown or forgotten.
        """
        if task not in self.tasks:
            state = "was forgotten already" if task in self.forgotten else "is not recorded"
            raise KeyError(f"Task {task!r} {state}; there are {_listed(self.tasks)}.")
        return self._records[task]

    def begin(self, task: str) -> None:
        """Note the weights before a task's first step; a head that grows has grown by now.

        Raises:
            ValueError: the name is empty or taken.
            RuntimeError: another task has begun and is not consolidated.
        """
        if self._open:
            raise RuntimeError(
                f"Task {self._open[0]!r} has begun: call consolidate() or abandon() before "
                f"begin({task!r})."
            )
        if not isinstance(task, str) or not task or task in (*self.tasks, *self.forgotten):
            taken = _listed((*self.tasks, *self.forgotten))
            raise ValueError(f"task must be a new name, not {task!r}; taken are {taken}.")
        self._open = (task, self._trainable())

    def abandon(self) -> None:
        """Set the weights back to those at :meth:`begin`; the task never was.

        What was frozen then is left as it is: nobody noted it.
        """
        if self._open:
            _assign(dict(self.ewc.model.named_parameters()), self._open[1])
        self._open = None

    def consolidate(
        self, data: Any, estimator: str = "exact", *, weight: float = 1.0, **options: Any
    ) -> None:
        """:meth:`EWC.consolidate <ewc_tutorial.ewc.EWC.consolidate>` the task that has begun, and
        record it. Arguments and errors are the same; :meth:`merge` has the rest."""
        self._begun()
        self.merge(self.ewc.measure(data, estimator, **options), weight)

    def merge(self, fisher: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """:meth:`EWC.merge <ewc_tutorial.ewc.EWC.merge>` the task that has begun, and record it.

        Raises:
            RuntimeError: no task has begun, or a parameter has changed its shape since.
            ValueError: as :meth:`EWC.merge`. In all cases nothing is changed.
        """
        task, before = self._begun()
        self._check_count()
        after = self._trainable()
        for name in after.keys() | before.keys():
            if name not in after or name not in before or after[name].shape != before[name].shape:
                raise RuntimeError(
                    f"Parameter {name!r} is not what it was at begin({task!r}): grow heads and "
                    "freeze layers before begin()."
                )
        with _unchanged_if_it_fails(self.ewc):
            self.ewc.merge(fisher, weight)
            kept = {name: _stored(fisher[name]) for name in self.ewc.shapes()}
            record = TaskRecord(task, before, after, kept, float(weight))
            weights = self._trainable(self._trained) | after
            self._records.commit((*self.tasks, task), {task: record}, self.forgotten, weights)
        self._trained |= after.keys()
        self._open = None

    @torch.no_grad()
    def forget(self, task: str, *, shift_anchors: bool = True) -> None:
        """Subtract a task's update from the model, and take the task out of the EWC.

        If it was the last task, the weights are afterwards bit for bit those before it.

        Args:
            task: its name.
            shift_anchors: subtract the update from the anchors of the later tasks, too, which
                contain it. If not, training on with the penalty pulls the weights towards where
                they still knew the task.

        Raises:
            KeyError: the task is unknown or forgotten.
            RuntimeError: another task has begun, or the EWC has merged a task without a record.
                Nothing is changed then, nor if writing to the folder fails.
        """
        gone = self[task]
        if self._open:
            raise RuntimeError(
                f"Task {self._open[0]!r} has begun: call consolidate() or abandon() before "
                f"forget({task!r})."
            )
        self._check_count()
        position = self.tasks.index(task)
        kept = [name for name in self.tasks if name != task]
        changed = {}
        if shift_anchors:
            for name in kept[position:]:
                later = self._records[name]
                parts = (_subtracted(later.before, gone), _subtracted(later.after, gone))
                changed[name] = TaskRecord(name, *parts, later.fisher, later.weight)
        weights = _subtracted(self._trainable(self._trained), gone)
        with _unchanged_if_it_fails(self.ewc):
            self._replay(changed.get(name) or self._records[name] for name in kept)
            self._records.commit(kept, changed, (*self.forgotten, task), weights)
        _assign(dict(self.ewc.model.named_parameters()), weights)

    def _replay(self, records: Iterable[TaskRecord]) -> None:
        """Let the EWC meet these tasks and no others, each at the weights that it had then."""
        parameters = dict(self.ewc.model.named_parameters())
        shapes = self.ewc.shapes()
        self.ewc.reset()
        with _weights_put_back(parameters):
            for record in records:
                weights = {n: _padded(w, parameters[n].shape) for n, w in record.after.items()}
                _assign(parameters, weights)
                fisher = {n: _padded(record.fisher[n], shape) for n, shape in shapes.items()}
                self.ewc.merge(fisher, record.weight)

    def _begun(self) -> tuple[str, dict[str, Tensor]]:
        if not self._open:
            raise RuntimeError("No task has begun: call begin(name) before training on it.")
        return self._open

    def _check_count(self) -> None:
        if self.ewc.n_tasks != len(self.tasks):
            raise RuntimeError(
                f"ewc has {self.ewc.n_tasks} tasks, but {len(self.tasks)} are recorded: "
                "consolidate through the TaskMemory only, and reopen it with TaskMemory.load()."
            )

    def _trainable(self, others: Collection[str] = ()) -> dict[str, Tensor]:
        """Return a copy of what can be trained and what is protected, and of others by name."""
        named = self.ewc.model.named_parameters()
        trained = {name: p for name, p in named if p.requires_grad or name in others}
        return {name: _stored(p) for name, p in (trained | self.ewc.weights()).items()}


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _padded(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``value`` with zeros for the rows that a head has got since.

    The factor of a head's outputs, a square matrix, has got as many columns.
    """
    old, new = tuple(value.shape), tuple(shape)
    if old == new:
        return value
    squares = old == old[:1] * 2 and new == new[:1] * 2
    if len(old) != len(new) or (old[1:] != new[1:] and not squares) or old[0] > new[0]:
        raise RuntimeError(
            f"A parameter of the records has shape {old}, but now {new}: it may only get further "
            "rows."
        )
    padded = value.new_zeros(new)
    padded[tuple(slice(n) for n in old)] = value
    return padded


def _subtracted(weights: Mapping[str, Tensor], gone: TaskRecord) -> dict[str, Tensor]:
    """Return θ − Δ per parameter, rounded once; θ_before itself where θ is still θ_after."""
    result = dict(weights)
    for name in gone.after.keys() & weights.keys():
        now = weights[name]
        before, after = (_padded(part[name], now.shape) for part in (gone.before, gone.after))
        earlier = (double(now) - (double(after) - double(before))).to(now)
        result[name] = torch.where(now == after, before, earlier)
    return result


@torch.no_grad()
def _assign(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        parameters[name].copy_(value)


@contextmanager
def _weights_put_back(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    saved = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        _assign(parameters, saved)


@contextmanager
def _unchanged_if_it_fails(ewc: EWC) -> Iterator[None]:
    """Set the EWC back if the block raises."""
    saved = copy.deepcopy(ewc.state_dict())
    try:
        yield
    except BaseException:
        ewc.load_state_dict(saved)
        raise


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
