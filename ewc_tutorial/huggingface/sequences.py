"""The Fisher information of sequence models: one sample is one sequence.

The engine of ``ewc_tutorial.fisher`` takes one tensor of inputs. Here that tensor holds the numbers
of rows of the batch at hand, and a small module looks the rows up and calls the model with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher import fisher_diagonal, fisher_factors
from ewc_tutorial.fisher.likelihoods.base import Likelihood
from ewc_tutorial.fisher.likelihoods.categorical import Categorical
from ewc_tutorial.huggingface.batches import IGNORED, DictBatch, dict_batches, rows_in
from ewc_tutorial.huggingface.ctc import CTC
from ewc_tutorial.randomness import as_generator

#: What a model can be for, and how the names of such models' classes end.
TASKS: dict[str, tuple[str, ...]] = {
    "causal_lm": ("ForCausalLM", "LMHeadModel"),
    "sequence_classification": ("ForSequenceClassification",),
    "token_classification": ("ForTokenClassification",),
    "ctc": ("ForCTC",),
}
ESTIMATORS = ("sampled", "empirical", "exact", "argmax")
#: Sequences per pass where the data has no batches of its own.
DEFAULT_BATCH = 16


def consolidate(
    ewc: EWC, data: Any, estimator: str = "sampled", *, weight: float = 1.0, **options: Any
) -> None:
    """:meth:`EWC.consolidate` with :func:`sequence_fisher`: one sample is one sequence.

    Give it the *old* data: what the model has learned and shall keep, never what comes next.

    Args:
        ewc: what remembers; an :class:`~ewc_tutorial.EWC` or a :class:`LoraEWC`. Only what it
            protects is differentiated, so that few protected parameters are cheap.
        data, estimator, options: as for :func:`sequence_fisher`.
        weight: as for :meth:`EWC.merge`.

    Raises:
        TypeError, ValueError: as :func:`sequence_fisher` and :meth:`EWC.merge`.
    """
    ewc.consolidate(data, estimator, weight=weight, fisher=sequence_fisher, **options)


def sequence_fisher(
    model: nn.Module,
    data: Any,
    estimator: str = "sampled",
    *,
    task: str | None = None,
    n_samples: int | None = None,
    batch_size: int | None = None,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]] | None = None,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
    layers: Mapping[str, str | None] | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information, the mean over *sequences* of the squared score.

    The score of a sequence is the gradient of the *sum* of its tokens' log-probabilities (of the
    log-probability of its text, for CTC). Neither tokens nor batches are averaged before squaring.

    Args:
        model: a Transformers model, with or without a PEFT adapter, differentiated in evaluation
            mode by its trainable parameters.
        data: a data set of dicts (``datasets.Dataset``, a list, any ``Dataset``), an iterable of
            batches (a ``DataLoader``), or one batch as a dict of tensors. Labels follow the
            model's convention: for a causal language model they are the inputs themselves, shifted
            here, and made of ``input_ids`` if there are none. Labels of −100 do not count, nor do
            tokens where ``attention_mask`` is 0; they influence neither the scores nor the draws.
        estimator: the label that the score is taken at.
            ``sampled``: drawn from the model, each token given the tokens of the data before it;
            for CTC a whole text. Unbiased, one backward pass.
            ``empirical``: the data's own.
            ``exact``: the expectation over all tokens, in T·(C − 1) backward passes; for tests and
            for classification. Not for CTC.
            ``argmax``: the model's own first choice. Not for CTC.
        task: ``causal_lm``, ``sequence_classification``, ``token_classification`` or ``ctc``; by
            default what the name of the model's class says.
        n_samples: use a random subset of so many sequences; of an iterable, the first so many.
        batch_size: sequences per pass. It bounds memory and does not change the result.
        collate: joins items of a data set to a batch; default :func:`pad_batch`.
        generator: draws the subset and the labels; a number seeds a new one, None means 0.
        progress: show a progress bar if it takes longer than about a second.
        layers: weights, with their biases, whose Kronecker factors are wanted instead.

    Returns:
        One tensor per trainable parameter, as :func:`~ewc_tutorial.fisher_diagonal` does; with
        ``layers``, what :func:`~ewc_tutorial.fisher.fisher_factors` does.

    Raises:
        TypeError: ``data`` has a type that does not fit.
        ValueError: an argument is unknown or out of range, or the data does not fit the model.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}.")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples must be at least 1 or None, not {n_samples!r}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 or None, not {batch_size!r}.")
    generator = as_generator(generator)
    task = task or infer_task(model)
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}.")
    batches = dict_batches(data, collate, n_samples, batch_size or DEFAULT_BATCH, generator)
    rows = _Rows(model, task)
    inside = {
        f"model.{weight}": bias and f"model.{bias}" for weight, bias in (layers or {}).items()
    }
    measure = partial(fisher_factors, layers=inside) if inside else fisher_diagonal
    fisher = measure(
        rows,
        rows.pairs(batches),
        estimator=estimator,
        batch_size=batch_size,
        likelihood=rows.likelihood(),
        generator=generator,
        progress=progress,
    )
    return {name.removeprefix("model."): value for name, value in fisher.items()}


def infer_task(model: nn.Module) -> str:
    """Return what the model is for, by the name of its class.

    Raises:
        ValueError: the name does not say.
    """
    name = type(_base(model)).__name__
    for task, endings in TASKS.items():
        if name.endswith(endings):
            return task
    raise ValueError(
        f"task is not clear from the class {name}: pass task, one of {', '.join(TASKS)}."
    )


class _Rows(nn.Module):
    """A model as a function of row numbers (B,) of the batch that :meth:`pairs` has come to."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self._batch: DictBatch = {}
        accepted = inspect.signature(_base(model).forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self._accepts = lambda name: name in accepted or (anything and name == "attention_mask")
        self._fixed = {"use_cache": False} if "use_cache" in accepted else {}

    def likelihood(self) -> Likelihood:
        if self.task != "ctc":
            return Categorical(ignore_index=IGNORED)
        config = _base(self.model).config
        return CTC(config.pad_token_id, config.ctc_zero_infinity)

    def pairs(self, batches: Iterator[DictBatch]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield row numbers and labels, each time when the rows of that batch are in place."""
        device = next(self.model.parameters()).device
        for batch in batches:
            labels = self._labels(batch)
            names = [name for name in batch if name != "labels" and self._accepts(name)]
            self._batch = {name: batch[name].to(device) for name in names}
            yield torch.arange(rows_in(batch)), labels

    def forward(self, rows: Tensor) -> Tensor:
        inputs = {name: value[rows] for name, value in self._batch.items()}
        logits = self.model(**inputs, **self._fixed).logits
        return logits[:, :-1] if self.task == "causal_lm" else logits

    def _labels(self, batch: DictBatch) -> Tensor | None:
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if self.task == "causal_lm":
            labels = batch["input_ids"] if labels is None else labels
            labels = labels if mask is None else labels.masked_fill(mask == 0, IGNORED)
            return labels[:, 1:]
        if self.task == "token_classification":
            return (
                labels if labels is None or mask is None else labels.masked_fill(mask == 0, IGNORED)
            )
        if self.task == "ctc":
            return self._text(batch, labels, mask)
        return labels

    def _text(self, batch: DictBatch, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return the frames that count and the text, as :class:`CTC` takes them."""
        count = getattr(_base(self.model), "_get_feat_extract_output_lengths", None)
        if mask is None or count is None:
            frames = torch.full((rows_in(batch),), -1)
        else:
            frames = count(mask.sum(-1)).long().cpu()
        if labels is None:
            labels = torch.empty(len(frames), 0, dtype=torch.long)
        return torch.cat([frames[:, None], labels.cpu()], dim=1)


def _base(model: nn.Module) -> nn.Module:
    """Return the Transformers model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
