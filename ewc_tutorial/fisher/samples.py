"""One view of everything that can be passed as ``data``: batches of (x, y)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import chain, islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from ewc_tutorial.fisher.inputs import Inputs, apply, take, tensors
from ewc_tutorial.fisher.inputs import n_samples as rows_of

Batch = tuple[Inputs, Tensor | None]

#: Items that are collated at a time where a stream yields single ones.
ITEMS_AT_A_TIME = 64


class Samples:
    """Samples that are counted once, in batches of any size.

    Attributes:
        total: how many samples there will be, or None where only the end of a stream tells.
        own_batches: whether the data comes in batches of its own.
    """

    total: int | None
    own_batches: bool

    def head(self, n: int) -> Batch | None:
        """Return up to ``n`` samples, which :meth:`batches` will yield again, or None if empty."""
        raise NotImplementedError

    def batches(self, size: int | None, merge: bool = False) -> Iterator[Batch]:
        """Yield batches of at most ``size`` samples (None: a stream's own batches).

        Args:
            size: the largest batch.
            merge: also join smaller batches of a stream, so that all but the last have ``size``.
        """
        raise NotImplementedError

    def repeatable(self) -> Callable[[], Samples]:
        """Return what gives the same samples each time; of a stream they are then all held."""
        raise NotImplementedError


class _Indexed(Samples):
    """Samples that can be fetched by their numbers."""

    own_batches = False

    def __init__(self, fetch: Callable[[Tensor], Batch], indices: Tensor) -> None:
        self._fetch = fetch
        self._indices = indices
        self.total = len(indices)

    def head(self, n: int) -> Batch | None:
        return self._fetch(self._indices[:n]) if self.total else None

    def batches(self, size: int | None, merge: bool = False) -> Iterator[Batch]:
        for indices in self._indices.split(size or max(1, len(self._indices))):
            if len(indices):
                yield self._fetch(indices)

    def repeatable(self) -> Callable[[], Samples]:
        return lambda: self


class Stream(Samples):
    """An iterable of batches, gone through once; no more than two batches are held at a time.

    Args:
        batches: what ``read`` takes.
        limit: the samples to take, None for all.
        read: makes (x, y) of a batch as the data has it.
    """

    own_batches = True

    def __init__(
        self, batches: Iterable[Any], limit: int | None, read: Callable[[Any], Batch]
    ) -> None:
        self.total = None
        self._limit = limit
        # An empty batch says nothing, not even what the model would return for it.
        self._batches = (b for b in map(read, batches) if rows_of(b[0]))
        self._first = next(self._batches, None)

    def head(self, n: int) -> Batch | None:
        return None if self._first is None else _slice(self._first, 0, n)

    def batches(self, size: int | None, merge: bool = False) -> Iterator[Batch]:
        if self._first is None:
            return
        batches: Iterator[Batch] = chain([self._first], self._batches)
        self._first = None
        if self._limit is not None:
            batches = _first_samples(batches, self._limit)
        if size is None:
            yield from batches
        elif merge:
            yield from _merged(batches, size)
        else:
            for batch in batches:
                for start in range(0, rows_of(batch[0]), size):
                    yield _slice(batch, start, start + size)

    def repeatable(self) -> Callable[[], Samples]:
        held = list(self.batches(None))
        return lambda: Stream(held, None, lambda batch: batch)


def make_samples(data: Any, n_samples: int | None, generator: torch.Generator) -> Samples:
    """Return the samples of ``data``, or a random subset of ``n_samples`` of them.

    Args:
        data: a pair (x, y), a ``Dataset`` of items (x, y), an iterable of batches (x, y), or an
            object whose attribute ``train`` is a ``Dataset``, such as a task. x is a tensor or a
            dictionary of tensors. Samples that have been made already are returned.
        n_samples: size of the subset, without replacement; of an iterable the *first* samples are
            taken, which is the only choice that reads no more than it uses.
        generator: draws the subset.

    Raises:
        TypeError: ``data`` is none of these.
        ValueError: x and y do not fit, or ``data`` could be one pair as well as two batches.
    """
    if isinstance(data, Samples):
        return data
    if not isinstance(data, Dataset) and isinstance(getattr(data, "train", None), Dataset):
        data = data.train
    if type(data) is TensorDataset:  # a subclass may make other items of its tensors
        data = data.tensors
    if _is_one_batch(data):
        x, y = read_pair(data)
        return _Indexed(
            lambda indices: (
                _rows(x, indices),
                None if y is None else cast(Tensor, _rows(y, indices)),
            ),
            random_subset(rows_of(x), n_samples, generator),
        )
    if isinstance(data, IterableDataset):
        return Stream(collated(data, ITEMS_AT_A_TIME, _stacked), n_samples, read_pair)
    if isinstance(data, Dataset):
        return _Indexed(
            lambda indices: read_pair(_stacked([data[i] for i in indices.tolist()])),
            random_subset(len(cast(Sized, data)), n_samples, generator),
        )
    if isinstance(data, Iterable) and not isinstance(data, Tensor | str | bytes | Mapping):
        return Stream(data, n_samples, read_pair)
    raise TypeError(
        "data must be a task, a pair (x, y) of tensors, a Dataset of items (x, y) or an iterable "
        f"of batches (x, y), not a {type(data).__name__}."
    )


def read_pair(batch: Any) -> Batch:
    """Return (x, y) after checking that x and y have a row per sample.

    Raises:
        TypeError: ``batch`` is not inputs with labels, nor inputs alone.
        ValueError: x and y have other numbers of rows.
    """
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    x, y = (*parts, None, None)[:2]
    if (
        len(parts) > 2
        or isinstance(batch, Mapping)
        or not isinstance(x, Tensor | Mapping)
        or not isinstance(y, Tensor | None)
    ):
        raise TypeError(f"data must yield pairs (x, y) of tensors, not {_what_instead(batch)}.")
    if not isinstance(x, Tensor) and not (x and all(isinstance(t, Tensor) for t in x.values())):
        kinds = ", ".join(f"{name!r}: {type(value).__name__}" for name, value in x.items())
        raise TypeError(f"a dictionary x must have tensors as its values, not {{{kinds}}}.")
    every = tensors(x) + ([] if y is None else [y])
    if any(t.ndim == 0 for t in every) or len({len(t) for t in every}) > 1:
        raise ValueError(
            "x and y must have as many rows as there are samples, not shapes "
            f"{', '.join(str(tuple(t.shape)) for t in every)}: of data with single samples (x, y) "
            "make a DataLoader."
        )
    return x, y


def random_subset(total: int, n_samples: int | None, generator: torch.Generator) -> Tensor:
    """Return the ascending numbers of ``n_samples`` of ``total`` samples; None takes all."""
    if n_samples is None or n_samples >= total:
        return torch.arange(total)
    order = torch.randperm(total, generator=generator, device=generator.device)
    # In the order of the data, which is kinder to memory and to files.
    return order[:n_samples].sort().values.cpu()


def collated(items: Iterable[Any], size: int, collate: Callable[[list[Any]], Any]) -> Iterator[Any]:
    """Yield batches of up to ``size`` items."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield collate(group)


def _stacked(items: list[Any]) -> Any:
    try:
        return default_collate(items)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise TypeError(
            f"the items of data cannot be stacked to a batch ({reason}): a Dataset must have items "
            "(x, y) of tensors or numbers that agree in shape; of one that yields whole batches "
            "pass iter(data)."
        ) from error


def _is_one_batch(data: Any) -> bool:
    """Return whether ``data`` is the parts of one batch, and not a sequence of batches."""
    if not isinstance(data, tuple | list) or not data:
        return False
    x, *others = data
    if not isinstance(x, Tensor | Mapping) or not all(isinstance(t, Tensor | None) for t in others):
        return False
    if isinstance(data, list) and isinstance(x, Mapping) and not others:
        return False
    if isinstance(data, tuple) or not all(isinstance(part, Tensor) for part in data):
        return True
    return not _are_batches_of_inputs(data)


def _are_batches_of_inputs(tensors: list[Tensor]) -> bool:
    """Return whether a list of tensors holds inputs, one batch each, and not inputs and labels."""
    if len({(t.dtype, t.ndim) for t in tensors}) > 1:
        return False
    if len(tensors) == 2 and tensors[0].shape[:1] == tensors[1].shape[:1]:
        raise ValueError(
            "data is a list of two tensors of one length, which may be inputs with labels or two "
            "batches of inputs: pass a tuple (x, y), or a list of pairs [(x1, None), (x2, None)]."
        )
    return True


def _what_instead(batch: Any) -> str:
    """Describe what the data yields, and say what to pass for it."""
    if isinstance(batch, Mapping):
        return (
            f"a {type(batch).__name__}: pass pairs ({{…}}, y) of inputs and labels (or None); for "
            "models of Transformers take ewc_tutorial.huggingface.consolidate"
        )
    what = f"a {type(batch).__name__}"
    if isinstance(batch, tuple | list):
        what += f" of {', '.join(type(part).__name__ for part in batch)}"
        if len(batch) > 2 and all(isinstance(part, Tensor) for part in batch):
            return (
                f"{what}: leave out what is neither input nor label, as in ((x, y) for x, y, *_ in "
                "batches), and pass several inputs as a dictionary of tensors"
            )
    return (
        f"{what}: make tensors of arrays and lists (torch.as_tensor), and batches of single "
        "samples (a DataLoader)"
    )


def _rows(x: Inputs, indices: Tensor) -> Inputs:
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices):  # ascending without a gap: no copy is needed
        return take(x, slice(first, last + 1))
    return apply(lambda tensor: tensor[indices.to(tensor.device)], x)


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    x, y = batch
    return take(x, slice(start, stop)), None if y is None else y[start:stop]


def _first_samples(batches: Iterator[Batch], n: int) -> Iterator[Batch]:
    for batch in batches:
        yield _slice(batch, 0, n)
        n -= rows_of(batch[0])
        if n <= 0:
            return


def _merged(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    held: Batch | None = None
    for batch in batches:
        held = batch if held is None else _join(held, batch)
        while rows_of(held[0]) >= size:
            yield _slice(held, 0, size)
            held = _slice(held, size, rows_of(held[0]))
    if held is not None and rows_of(held[0]):
        yield held


def _join(a: Batch, b: Batch) -> Batch:
    if (a[1] is None) != (b[1] is None):
        raise ValueError("data must have labels y in every batch or in none.")
    y = None if a[1] is None or b[1] is None else torch.cat([a[1], b[1]])
    first, second = a[0], b[0]
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return torch.cat([cast(Tensor, first), cast(Tensor, second)]), y
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}, y
