"""The Fisher information of sequence models: one sample is one sequence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.fisher.diagonal import DEFAULT_SEED
from ewc_tutorial.fisher.inputs import Inputs
from ewc_tutorial.fisher.likelihoods.base import Likelihood
from ewc_tutorial.fisher.likelihoods.categorical import Categorical
from ewc_tutorial.fisher.samples import Batch, Stream
from ewc_tutorial.huggingface.batches import (
    IGNORED,
    DictBatch,
    dict_batches,
    pad_batch,
    rows_in,
    tensors_of,
)
from ewc_tutorial.huggingface.ctc import CTC

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
    """Measure the Fisher information on ``data`` at the present weights and remember both.

    Give it the *old* data: what the model has learned and shall keep, never what comes next.

    Args:
        ewc: what remembers; an :class:`~ewc_tutorial.EWC` or a :class:`LoraEWC`. Only what it
            protects is differentiated, so that few protected parameters are cheap.
        data, estimator, options: as for :func:`sequence_fisher`.
        weight: as for :meth:`EWC.merge`.

    Raises:
        TypeError, ValueError: as :func:`sequence_fisher` and :meth:`EWC.merge`.
    """
    with only_trainable(ewc.model, ewc.names):
        fisher = sequence_fisher(ewc.model, data, estimator, **options)
    ewc.merge(fisher, weight)


def sequence_fisher(
    model: nn.Module,
    data: Any,
    estimator: str = "sampled",
    *,
    task: str | None = None,
    n_samples: int | None = None,
    batch_size: int | None = None,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
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
        generator: draws the subset and the labels; None starts one from a fixed seed.
        progress: show a progress bar if it takes longer than about a second.

    Returns:
        One tensor per trainable parameter, as :func:`~ewc_tutorial.fisher_diagonal` does.

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
    generator = generator or torch.Generator().manual_seed(DEFAULT_SEED)
    task = task or infer_task(model)
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}.")
    logits = Logits(model, task)
    batches = dict_batches(
        data, collate or pad_batch, n_samples, batch_size or DEFAULT_BATCH, generator
    )
    fisher = fisher_diagonal(
        logits,
        Stream(batches, n_samples, logits.read),
        estimator,
        batch_size=batch_size,
        likelihood=logits.likelihood(),
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


@contextmanager
def only_trainable(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let just the parameters ``names`` be trainable for a while."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        wanted = set(names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)


class Logits(nn.Module):
    """A Transformers model as a function of its inputs (a dict) that returns its logits."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task
        accepted = inspect.signature(_base(model).forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self._accepts = lambda name: name in accepted or (anything and name == "attention_mask")
        self._fixed = {"use_cache": False} if "use_cache" in accepted else {}

    def likelihood(self) -> Likelihood:
        if self.task != "ctc":
            return Categorical(ignore_index=IGNORED, class_dim=-1)
        config = _base(self.model).config
        return CTC(config.pad_token_id, config.ctc_zero_infinity)

    def read(self, batch: Any) -> Batch:
        """Return the inputs and labels of a batch, a dict with at least a main input."""
        tensors = tensors_of(batch)
        names = [name for name in tensors if name != "labels" and self._accepts(name)]
        return Inputs({name: tensors[name] for name in names}), self._labels(tensors)

    def forward(self, inputs: DictBatch) -> Tensor:
        return self.model(**inputs, **self._fixed).logits

    def _labels(self, batch: DictBatch) -> Tensor | None:
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if self.task == "causal_lm":
            return self._next_tokens(batch["input_ids"] if labels is None else labels, mask)
        if self.task == "token_classification":
            return (
                labels if labels is None or mask is None else labels.masked_fill(mask == 0, IGNORED)
            )
        if self.task == "ctc":
            return self._text(batch, labels, mask)
        return labels

    @staticmethod
    def _next_tokens(labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return what each place is to foretell: the token after it, where both are real."""
        after = torch.full_like(labels, IGNORED)
        after[:, :-1] = labels[:, 1:]
        if mask is not None:
            after[:, :-1].masked_fill_((mask[:, 1:] == 0) | (mask[:, :-1] == 0), IGNORED)
        return after

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
