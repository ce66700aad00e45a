"""Batches of dicts, as Transformers models take them, out of whatever the data is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ewc_tutorial.fisher.samples import random_subset

DictBatch = dict[str, Tensor]
#: What a model's main input can be called; its length tells padding where there is no mask.
MAIN_INPUTS = ("input_ids", "input_values", "input_features")
IGNORED = -100


def pad_batch(items: Sequence[Mapping[str, Any]]) -> DictBatch:
    """Join items of different lengths to one batch, padded on the right to the longest.

    Labels are padded with −100, which no loss counts, everything else with 0; if inputs had to be
    padded and have no ``attention_mask``, one is added. Values that are no numbers are left out. It
    serves as ``data_collator`` of a Trainer, too.

    Args:
        items: per sample a dict of numbers, lists, arrays or tensors; their first dimension is the
            one that may differ.
    """
    batch: DictBatch = {}
    for name in items[0]:
        try:
            values = [torch.as_tensor(item[name]) for item in items]
        except (TypeError, ValueError, RuntimeError):
            continue  # texts and the like
        if values[0].ndim == 0:
            key = "labels" if name in ("label", "label_ids") else name
            batch[key] = torch.stack(values)
            continue
        fill = IGNORED if name == "labels" else 0
        batch[name] = torch.nn.utils.rnn.pad_sequence(values, True, fill)
        lengths = torch.tensor([len(value) for value in values])
        if name in MAIN_INPUTS and "attention_mask" not in items[0] and len(lengths.unique()) > 1:
            places = torch.arange(int(lengths.max()))
            batch["attention_mask"] = (places < lengths[:, None]).long()
    return batch


def dict_batches(
    data: Any,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]] | None,
    n_samples: int | None,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[DictBatch]:
    """Yield batches of tensors.

    Args:
        data: a data set of dicts (``datasets.Dataset``, a list, any ``Dataset``), one batch as a
            dict of tensors, or an iterable of such batches (a ``DataLoader``).
        collate: joins items to a batch; default :func:`pad_batch`. Only for data sets.
        n_samples: a random subset of so many of a data set; the first so many of an iterable.
        batch_size: sequences per batch of a data set.
        generator: draws the subset.

    Raises:
        TypeError: ``data`` is none of these.
    """
    if isinstance(data, Mapping):
        batches: Iterable[Any] = [data]
    elif not isinstance(data, DataLoader) and hasattr(data, "__getitem__"):
        batches = _joined(data, collate or pad_batch, n_samples, batch_size, generator)
    elif isinstance(data, Iterable):
        batches = data
    else:
        raise TypeError(
            "data must be a data set of dicts, a batch (a dict of tensors) or an iterable of "
            f"batches, not {type(data).__name__}."
        )
    return _first(map(_tensors, batches), n_samples)


def _joined(
    data: Any,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]],
    n_samples: int | None,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[Mapping[str, Any]]:
    for part in random_subset(len(data), n_samples, generator).split(batch_size):
        if len(part):
            yield collate([_item(data, i) for i in part.tolist()])


def _item(data: Any, index: int) -> Mapping[str, Any]:
    item = data[index]
    if not isinstance(item, Mapping):
        raise TypeError(
            f"items of data must be dicts such as {{'input_ids': …, 'labels': …}}, not "
            f"{type(item).__name__}."
        )
    return item


def _tensors(batch: Any) -> DictBatch:
    if not isinstance(batch, Mapping):
        raise TypeError(
            "data must yield batches as dicts of tensors such as {'input_ids': …, 'labels': …}, "
            f"not {type(batch).__name__}; pairs (x, y) are for ewc_tutorial.fisher_diagonal."
        )
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if "label" in tensors:
        tensors["labels"] = tensors.pop("label")
    main = next((name for name in MAIN_INPUTS if name in tensors), None)
    if main is None:
        raise ValueError(
            f"a batch must have one of {', '.join(MAIN_INPUTS)}, but it has "
            f"{', '.join(batch) or 'nothing'}."
        )
    if tensors[main].ndim < 2:
        raise ValueError(
            f"{main} of a batch must have shape (sequences, length), not "
            f"{tuple(tensors[main].shape)}."
        )
    return tensors


def rows_in(batch: DictBatch) -> int:
    """Return how many sequences a batch has."""
    return next(len(batch[name]) for name in MAIN_INPUTS if name in batch)


def _first(batches: Iterator[DictBatch], n: int | None) -> Iterator[DictBatch]:
    if n is None:
        yield from batches
        return
    for batch in batches:
        rows = rows_in(batch)
        yield {name: value[:n] for name, value in batch.items()} if rows > n else batch
        n -= rows
        if n <= 0:
            return
