"""One view of everything that can be passed as ``data``: batches of (x, y)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

Batch = tuple[Tensor, Tensor | None]


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


class _Indexed(Samples):
    """Samples that can be fetched by their numbers."""

    own_batches = False

    def __init__(self, fetch: Callable[[Tensor], Any], indices: Tensor) -> None:
        self._fetch = fetch
        self._indices = indices
        self.total = len(indices)

    def head(self, n: int) -> Batch | None:
        return _batch(self._fetch(self._indices[:n])) if self.total else None

    def batches(self, size: int | None, merge: bool = False) -> Iterator[Batch]:
        for indices in self._indices.split(size or max(1, self.total)):
            if len(indices):
                yield _batch(self._fetch(indices))


class _Stream(Samples):
    """An iterable of batches, gone through once; no more than two batches are held."""

    own_batches = True

    def __init__(self, batches: Iterable[Any], limit: int | None) -> None:
        self.total = None
        self._limit = limit
        # An empty batch says nothing, not even what the model would return for it.
        self._batches = (b for b in map(_batch, batches) if len(b[0]))
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
                for start in range(0, len(batch[0]), size):
                    yield _slice(batch, start, start + size)


def make_samples(data: Any, n_samples: int | None, generator: torch.Generator) -> Samples:
    """Return the samples of ``data``, or a random subset of ``n_samples`` of them.

    Args:
        data: a task (anything with a ``train`` attribute), a pair (x, y) of tensors, a ``Dataset``
            of items (x, y) or an iterable of batches (x, y).
        n_samples: size of the subset, without replacement; of an iterable the *first* samples are
            taken, which is the only choice that reads no more than it uses.
        generator: draws the subset.

    Raises:
        TypeError: ``data`` is none of these.
    """
    data = getattr(data, "train", data)
    if isinstance(data, TensorDataset):
        data = data.tensors if len(data.tensors) > 1 else (data.tensors[0], None)
    if _is_pair(data):
        x, y = _batch(data)
        return _Indexed(
            lambda indices: (_rows(x, indices), None if y is None else _rows(y, indices)),
            random_subset(len(x), n_samples, generator),
        )
    if isinstance(data, IterableDataset):
        return _Stream(_collated(iter(data), 64), n_samples)
    if isinstance(data, Dataset):
        return _Indexed(
            lambda indices: default_collate([data[i] for i in indices.tolist()]),
            random_subset(len(data), n_samples, generator),
        )
    if isinstance(data, Iterable) and not isinstance(data, Tensor | str | bytes | dict):
        return _Stream(data, n_samples)
    raise TypeError(
        "data must be a Task, a pair (x, y) of tensors, a Dataset of items (x, y) or an iterable "
        f"of batches (x, y), not {type(data).__name__}."
    )


def _is_pair(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and isinstance(data[0], Tensor)
        and isinstance(data[1], Tensor | None)
    )


def _batch(batch: Any) -> Batch:
    """Return (x, y) after checking that it is a pair of tensors of one length."""
    if isinstance(batch, Tensor):
        batch = (batch, None)
    elif isinstance(batch, tuple | list) and len(batch) == 1:  # a loader of inputs alone
        batch = (batch[0], None)
    if not _is_pair(batch):
        raise TypeError(
            "data must yield pairs (x, y) of tensors (y may be None), not "
            f"{_describe(batch)}; wrap the model where it takes other inputs."
        )
    x, y = batch
    if x.ndim == 0 or (y is not None and (y.ndim == 0 or len(y) != len(x))):
        raise ValueError(
            "x and y must have as many rows as there are samples, not shapes "
            f"{tuple(x.shape)} and {None if y is None else tuple(y.shape)}."
        )
    return x, y


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value)}"
    return f"a {type(value).__name__}"


def random_subset(total: int, n_samples: int | None, generator: torch.Generator) -> Tensor:
    """Return the ascending numbers of ``n_samples`` of ``total`` samples; None takes all."""
    if n_samples is None or n_samples >= total:
        return torch.arange(total)
    order = torch.randperm(total, generator=generator, device=generator.device)
    # In the order of the data, which is kinder to memory and to files.
    return order[:n_samples].sort().values.cpu()


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices):  # ascending without a gap: no copy is needed
        return tensor[first : last + 1]
    return tensor[indices.to(tensor.device)]


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    x, y = batch
    return x[start:stop], None if y is None else y[start:stop]


def _collated(items: Iterator[Any], size: int) -> Iterator[Any]:
    while group := list(islice(items, size)):
        yield default_collate(group)


def _first_samples(batches: Iterator[Batch], n: int) -> Iterator[Batch]:
    for batch in batches:
        yield _slice(batch, 0, n)
        n -= len(batch[0])
        if n <= 0:
            return


def _merged(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    held: Batch | None = None
    for batch in batches:
        held = batch if held is None else _join(held, batch)
        while len(held[0]) >= size:
            yield _slice(held, 0, size)
            held = _slice(held, size, len(held[0]))
    if held is not None and len(held[0]):
        yield held


def _join(a: Batch, b: Batch) -> Batch:
    if (a[1] is None) != (b[1] is None):
        raise ValueError("data must have labels y in every batch or in none.")
    y = None if a[1] is None or b[1] is None else torch.cat([a[1], b[1]])
    return torch.cat([a[0], b[0]]), y
