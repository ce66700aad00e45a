"""Batches of dicts, as Transformers models take them, out of whatever the data is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ewc_tutorial.fisher.samples import collated, random_subset

DictBatch = dict[str, Tensor]
#: What a model's main input can be called, and how many dimensions it has in one sample. Its length
#: tells padding where there is no mask.
MAIN_INPUTS = {"input_ids": 1, "input_values": 1, "input_features": 2}
#: What is made of the model's vocabulary, and padded with its pad token.
TOKENS = ("input_ids", "decoder_input_ids")
IGNORED = -100
PREFERENCES = (
    "data holds preferences (answers chosen and rejected, or a completion_mask without labels), "
    "and rejected answers are nothing to keep: pass texts that the model shall go on to write, "
    "such as prompts with chosen answers."
)


def pad_batch(
    items: Sequence[Mapping[str, Any]], pad_token_id: int | None = None, causal_lm: bool = False
) -> DictBatch:
    """Join items of different lengths to one batch, padded on the right to the longest.

    An item with ``seq_lengths`` is several sequences that were packed, and becomes several rows.
    Labels are padded with −100, which no loss counts, tokens with the model's pad token, everything
    else with 0; if inputs had to be padded and have no ``attention_mask``, one is added. Values
    that are no numbers are left out. As the ``data_collator`` of a Trainer take :func:`collator`,
    which knows the model.

    Args:
        items: per sample a dict of numbers, lists, arrays or tensors; their first dimension is the
            one that may differ.
        pad_token_id: the token that the model knows as padding.
        causal_lm: make labels of ``input_ids`` where there are none, of completions alone where a
            ``completion_mask`` says which tokens these are, as in data sets of TRL.

    Raises:
        ValueError: tokens have to be padded and ``pad_token_id`` is None, or samples do not have
            the same names.
    """
    items = [
        part
        for item in items
        for part in (_parts(item, item["seq_lengths"]) if "seq_lengths" in item else [item])
    ]
    batch: DictBatch = {}
    for name in items[0]:
        if not all(name in item for item in items):
            raise ValueError(f"every sample must have {name!r}, as the first one of the batch has.")
        try:
            values = [torch.as_tensor(item[name]) for item in items]
        except (TypeError, ValueError, RuntimeError):
            continue  # texts and the like
        if values[0].ndim == 0:
            key = "labels" if name in ("label", "label_ids") else name
            batch[key] = torch.stack(values)
            continue
        lengths = torch.tensor([len(value) for value in values])
        uneven = len(lengths.unique()) > 1
        if uneven and name in TOKENS and pad_token_id is None:
            raise ValueError(
                f"{name} of different lengths need pad_token_id, the token that the model knows as "
                "padding: take the collator(model) of ewc_tutorial.huggingface."
            )
        fill = IGNORED if name == "labels" else pad_token_id if name in TOKENS else 0
        batch[name] = torch.nn.utils.rnn.pad_sequence(values, True, fill or 0)
        if name in MAIN_INPUTS and "attention_mask" not in items[0] and uneven:
            places = torch.arange(int(lengths.max()))
            batch["attention_mask"] = (places < lengths[:, None]).long()
    if causal_lm and "labels" not in batch:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        counted = mask * batch.get("completion_mask", torch.ones_like(mask))
        batch["labels"] = batch["input_ids"].masked_fill(counted == 0, IGNORED)
    return batch


def unpacked(batch: Any, join: Callable[[Sequence[Any]], DictBatch]) -> Any:
    """Return a batch of packed sequences as one that has a row for each; any other as it is.

    Trainers pack short sequences into one row, to waste nothing on padding. Such a row has
    ``cu_seq_lens_q``, where they begin, or ``position_ids`` that begin anew. A sample is still one
    sequence, whose score is squared alone.

    Args:
        join: joins samples to a batch.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        return batch
    lengths = _lengths(batch)
    return batch if lengths is None else join(_parts(batch, lengths))


def _parts(packed: Mapping[str, Any], lengths: Any) -> list[DictBatch]:
    """Return the sequences that lie one after the other in an item or a batch of one row."""
    tokens = {
        name: torch.as_tensor(packed[name]).flatten().split([int(n) for n in lengths])
        for name in ("input_ids", "labels")
        if name in packed
    }
    return [dict(zip(tokens, part, strict=True)) for part in zip(*tokens.values(), strict=True)]


def _lengths(batch: Mapping[str, Any]) -> Tensor | None:
    """Return how long the packed sequences of a batch are, or None if it is not packed."""
    tokens, starts = batch["input_ids"], batch.get("cu_seq_lens_q")
    if starts is not None:
        return torch.as_tensor(starts).diff()
    positions = batch.get("position_ids")
    one_row = isinstance(tokens, Tensor) and tokens.ndim == 2 and len(tokens) == 1
    if not one_row or "attention_mask" in batch or not isinstance(positions, Tensor):
        return None
    begins = (positions.flatten() == 0).nonzero().flatten()
    if len(begins) < 2 or begins[0] > 0:
        return None
    return torch.cat([begins, begins.new_tensor([tokens.shape[1]])]).diff()


def dict_batches(
    data: Any,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]],
    n_samples: int | None,
    batch_size: int,
    generator: torch.Generator,
) -> Iterable[Any]:
    """Return batches as dicts.

    Args:
        data: one batch as a dict of tensors, a data set of items, a list of batches, or an iterable
            of either, such as a ``DataLoader`` or a streaming data set, which is gone through once.
        collate: joins items to a batch.
        n_samples: a random subset of so many of a data set of items; the rest is taken as it comes.
        batch_size: sequences per batch that is made of items.
        generator: draws the subset.

    Raises:
        TypeError: ``data`` is none of these.
    """
    if isinstance(data, Mapping):
        return [data]
    by_number = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if by_number and not isinstance(data, DataLoader):
        numbers = torch.arange(len(data))
        if len(data) and _is_item(data[0]):
            numbers = random_subset(len(data), n_samples, generator)
        elements: Iterator[Any] = (data[i] for i in numbers.tolist())
    elif isinstance(data, Iterable):
        elements = iter(data)
    else:
        raise TypeError(
            "data must be a data set of dicts, a batch (a dict of tensors) or an iterable of "
            f"either, not {type(data).__name__}."
        )
    first = next(elements, None)
    if first is None:
        return []
    elements = chain([first], elements)
    return collated(elements, batch_size, collate) if _is_item(first) else elements


def tensors_of(batch: Any) -> DictBatch:
    """Return what a batch has in tensors, its labels as ``labels``.

    Raises:
        TypeError: it is no dict.
        ValueError: it has no main input of the right shape, or is of preferences.
    """
    main = main_input(batch)
    if "completion_mask" in batch and "labels" not in batch:
        raise ValueError(PREFERENCES)
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if "label" in tensors:
        tensors["labels"] = tensors.pop("label")
    dimensions = MAIN_INPUTS[main] + 1
    if main not in tensors or tensors[main].ndim != dimensions:
        what = tuple(tensors[main].shape) if main in tensors else type(batch[main]).__name__
        raise ValueError(
            f"{main} of a batch must be a tensor with {dimensions} dimensions, the first of which "
            f"counts the sequences, not {what}: let the tokenizer return tensors, or pass a list "
            "of single samples."
        )
    for name, tensor in tensors.items():
        if tensor.shape[:1] != tensors[main].shape[:1]:
            raise ValueError(
                f"{name} must have a row for each of the {len(tensors[main])} sequences of a "
                f"batch, not shape {tuple(tensor.shape)}."
            )
    if tensors.get("attention_mask", tensors[main]).ndim < 2:
        raise ValueError("attention_mask must have shape (sequences, length).")
    return tensors


def rows_in(batch: Mapping[str, Tensor]) -> int:
    """Return how many sequences a batch has."""
    return len(batch[main_input(batch)])


def main_input(sample: Any) -> str:
    """Return the name of the main input of an item or a batch."""
    if not isinstance(sample, Mapping):
        raise TypeError(
            "data must hold dicts such as {'input_ids': …, 'labels': …}, not a "
            f"{type(sample).__name__}; pairs (x, y) are for ewc_tutorial.fisher_diagonal."
        )
    main = next((name for name in MAIN_INPUTS if name in sample), None)
    if main is None and ("chosen_ids" in sample or "chosen" in sample):
        raise ValueError(PREFERENCES)
    if main is None:
        raise ValueError(
            f"data must have one of {', '.join(MAIN_INPUTS)}, but it has "
            f"{', '.join(sample) or 'nothing'}."
        )
    return main


def _is_item(sample: Any) -> bool:
    """Return whether this is one sample, and not a batch: by the dimensions of its main input."""
    main = main_input(sample)
    value, dimensions = sample[main], 0
    while isinstance(value, list | tuple) and len(value):
        value, dimensions = value[0], dimensions + 1
    return dimensions + getattr(value, "ndim", 0) <= MAIN_INPUTS[main]
