"""A Transformers model as a function from a dict of inputs to logits, with the labels for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.fisher.likelihoods import Categorical
from ewc_tutorial.fisher.samples import Batch
from ewc_tutorial.fisher.undisturbed import undisturbed
from ewc_tutorial.huggingface.batches import (
    IGNORED,
    MAIN_INPUTS,
    DictBatch,
    main_input,
    rows_in,
    tensors_of,
)
from ewc_tutorial.huggingface.tasks import base_of, likelihood_of

#: What is cut to the real tokens when a padded sequence is looked at alone.
SOURCE = {*MAIN_INPUTS, "attention_mask", "token_type_ids", "position_ids"}


class Logits(nn.Module):
    """The model under the name ``model``; :meth:`read` makes inputs and labels of a batch.

    Where a batch is padded, one padded sequence is compared with itself alone. A model that numbers
    its places from the left edge is told where a sequence begins.

    Args:
        model: a Transformers model, with or without an adapter.
        task: one of ``tasks.TASKS``.
    """

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.likelihood = likelihood_of(model, task)
        accepted = inspect.signature(base_of(model).forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self._accepts = lambda name: name in accepted or (anything and name == "attention_mask")
        self._fixed = {"use_cache": False} if "use_cache" in accepted else {}
        # Per kind of padding, (left, right), whether places have to be numbered for it.
        self._numbered: dict[tuple[bool, bool], bool] = {}

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs, **self._fixed).logits

    def read(self, batch: Mapping[str, Any]) -> Batch:
        """Return the inputs and labels of a batch.

        Raises:
            TypeError, ValueError: the batch does not fit the task, or the model does not ignore its
                padding.
        """
        tensors = tensors_of(batch)
        labels = self._labels(tensors)
        if self.task == "seq2seq_lm" and "decoder_input_ids" not in tensors:
            assert labels is not None  # _labels() asks for them
            tensors["decoder_input_ids"] = self._shifted(labels)
        names = [name for name in tensors if name != "labels" and self._accepts(name)]
        inputs = {name: tensors[name] for name in names}
        return self._padded(inputs) if "attention_mask" in inputs else inputs, labels

    def _labels(self, batch: DictBatch) -> Tensor | None:
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if self.task == "causal_lm":
            return _next_tokens(batch["input_ids"] if labels is None else labels, mask)
        if self.task == "seq2seq_lm" and labels is None:
            raise ValueError(
                "data must have labels, the texts that the decoder is to write, for an encoder "
                "with a decoder."
            )
        if self.task == "token_classification" and labels is not None and mask is not None:
            return labels.masked_fill(mask == 0, IGNORED)
        if self.task == "ctc":
            return self._text(batch, labels, mask)
        numbers = labels is not None and labels.is_floating_point()
        if numbers and isinstance(self.likelihood, Categorical):
            raise ValueError(
                "labels must be whole numbers to name classes; for others set the model's "
                "config.problem_type to 'regression' or 'multi_label_classification'."
            )
        return labels

    def _text(self, batch: DictBatch, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return the frames that count and the text, as :class:`CTC` takes them."""
        count = getattr(base_of(self.model), "_get_feat_extract_output_lengths", None)
        if mask is None or count is None:
            frames = torch.full((rows_in(batch),), -1)
        else:
            frames = count(mask.sum(-1)).long().cpu()
        if labels is None:
            labels = torch.empty(len(frames), 0, dtype=torch.long)
        return torch.cat([frames[:, None], labels.cpu()], dim=1)

    def _shifted(self, labels: Tensor) -> Tensor:
        """Return what the decoder has before it at each place: the labels up to there."""
        model = base_of(self.model)
        if hasattr(model, "prepare_decoder_input_ids_from_labels"):
            return model.prepare_decoder_input_ids_from_labels(labels=labels)
        config = model.config
        before = labels.roll(1, dims=1)
        before[:, 0] = config.decoder_start_token_id
        return before.masked_fill(before == IGNORED, config.pad_token_id)

    def _padded(self, inputs: DictBatch) -> DictBatch:
        """Return padded inputs as the model has to get them, or raise ValueError."""
        mask = inputs["attention_mask"]
        lengths = (mask != 0).sum(-1)
        edges = list(zip((mask[:, 0] == 0).tolist(), (mask[:, -1] == 0).tolist(), strict=True))
        for row in lengths.argsort().tolist():  # the most padding first
            if lengths[row] and any(edges[row]) and edges[row] not in self._numbered:
                self._numbered[edges[row]] = self._needs_numbers(inputs, row)
        if any(self._numbered.get(edge, False) for edge in edges):
            return inputs | {"position_ids": _places(mask)}
        return inputs

    def _needs_numbers(self, inputs: DictBatch, row: int) -> bool:
        """Return whether one padded sequence gives what it gives alone only if numbered."""
        device = next(self.model.parameters()).device
        padded = {name: t[row : row + 1].to(device) for name, t in inputs.items()}
        mask = padded["attention_mask"]
        if padded[main_input(padded)].shape[1:2] != mask.shape[1:]:  # a mask of something else
            return False
        real = mask[0].nonzero().flatten()
        first, end = int(real[0]), int(real[-1]) + 1
        alone = {
            name: t[:, first:end] if t.shape[1:2] == mask.shape[1:] and name in SOURCE else t
            for name, t in padded.items()
        }
        ways: list[dict[str, Tensor]] = [{}]
        if self._accepts("position_ids") and "position_ids" not in padded:
            ways.append({"position_ids": _places(mask)})
        with undisturbed(self.model), torch.no_grad():
            expected = self(**alone)
            tolerance = self._rounding(expected) * expected.abs().max().item()
            for way in ways:
                found = self(**padded, **way)
                if self.task in ("causal_lm", "token_classification"):
                    found = found[:, first:end]
                elif self.task == "ctc":
                    found = found[:, : expected.shape[1]]
                error = (found - expected).abs().max().item()
                if error <= tolerance:
                    return bool(way)
        raise ValueError(
            f"the model does not ignore padding on the {'left' if first else 'right'}, which "
            f"changes a sequence's logits by {error:.2g}: pad on the other side and with the "
            "model's own pad token, or not at all (batch_size=1 for a data set, batches of one "
            "length for a loader)."
        )

    def _rounding(self, outputs: Tensor) -> float:
        """Return the relative difference that is still rounding error."""
        kind = outputs.device.type
        formats = [outputs.dtype, *(p.dtype for p in self.model.parameters())]
        if torch.is_autocast_enabled(kind):
            formats.append(torch.get_autocast_dtype(kind))
        return max(torch.finfo(f).eps for f in formats if f.is_floating_point) ** 0.5


def _next_tokens(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Return what each place is to foretell: the token after it, where both are real."""
    after = torch.full_like(labels, IGNORED)
    after[:, :-1] = labels[:, 1:]
    if mask is not None:
        after[:, :-1].masked_fill_((mask[:, 1:] == 0) | (mask[:, :-1] == 0), IGNORED)
    return after


def _places(mask: Tensor) -> Tensor:
    """Return the number of each place, counted from the first real token of its sequence."""
    first = (mask != 0).to(torch.uint8).argmax(-1, keepdim=True)
    return (torch.arange(mask.shape[-1], device=mask.device) - first).clamp(min=0)
