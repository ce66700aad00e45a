"""The Fisher information of sequence models: one sample is one sequence."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher import fisher_diagonal, fisher_factors
from ewc_tutorial.fisher.measurement import Progress, check_choice, check_count
from ewc_tutorial.fisher.samples import Stream
from ewc_tutorial.huggingface.batches import DictBatch, dict_batches, pad_batch, unpacked
from ewc_tutorial.huggingface.logits import Logits
from ewc_tutorial.huggingface.tasks import checked_task, pad_token_of
from ewc_tutorial.randomness import as_generator
from ewc_tutorial.sharded import gathered

ESTIMATORS = ("sampled", "empirical", "exact", "argmax")
#: Sequences per pass where the data has no batches of its own.
DEFAULT_BATCH = 16


def consolidate(
    ewc: EWC, data: Any, estimator: str = "sampled", *, weight: float = 1.0, **options: Any
) -> None:
    """:meth:`EWC.consolidate` with :func:`sequence_fisher`: one sample is one sequence.

    Give it the *old* data: what the model has learned and shall keep, never what comes next. Before
    training on preferences (DPO), too, that is texts: what a model shall keep is its distribution
    over texts. The likelihood of preferences, σ(β·margin), sees no change that moves both answers
    alike, and its Fisher information vanishes with the margins that training makes large.

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
    progress: bool | Progress = False,
    layers: Mapping[str, str | None] | None = None,
    transposed: Collection[str] = (),
    eigenvalues: str = "product",
    resume: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information, the mean over *sequences* of the squared score.

    The score of a sequence is the gradient of the *sum* of its tokens' log-probabilities (of the
    log-probability of its text, for CTC). Neither tokens nor batches are averaged before squaring.

    Args:
        model: a Transformers model, with or without a PEFT adapter, differentiated in evaluation
            mode by its trainable parameters.
        data: a data set of dicts (``datasets.Dataset``, a list, any ``Dataset``, a streaming one),
            an iterable of batches (a ``DataLoader``), or one batch as a dict of tensors. Labels
            follow the model's convention: for a causal language model they are the inputs
            themselves, shifted here, and made of ``input_ids`` if there are none; for an encoder
            with a decoder they are the target texts. Labels of −100 do not count, nor do tokens
            where ``attention_mask`` is 0; they influence neither the scores nor the draws.
        estimator: the label that the score is taken at.
            ``sampled``: drawn from the model, each token given the tokens of the data before it;
            for CTC a whole text. Unbiased, one backward pass.
            ``empirical``: the data's own.
            ``exact``: the expectation over all tokens, in T·(C − 1) backward passes; for tests and
            for classification. Not for CTC.
            ``argmax``: the model's own first choice. Not for CTC.
        task: ``causal_lm``, ``seq2seq_lm``, ``sequence_classification`` (of classes, or what else
            ``config.problem_type`` says), ``token_classification`` or ``ctc``; by default what the
            name of the model's class says.
        n_samples: use a random subset of so many sequences; of an iterable, the first so many.
        batch_size: sequences per pass. It bounds memory and does not change the result.
        collate: joins items of a data set to a batch; default :func:`collator`.
        generator: draws the subset and the labels; a number seeds a new one, None means 0.
        progress, resume: as for :func:`~ewc_tutorial.fisher_diagonal`.
        layers: weights, with their biases, whose Kronecker factors are wanted instead.
        transposed: those of them that are stored as (I, O), as GPT-2's are.
        eigenvalues: of these, as for :func:`~ewc_tutorial.fisher.fisher_factors`.

    Returns:
        One tensor per trainable parameter, as :func:`~ewc_tutorial.fisher_diagonal` does; with
        ``layers``, what :func:`~ewc_tutorial.fisher.fisher_factors` does.

    Raises:
        TypeError: ``data`` or a number has a type that does not fit.
        ValueError: an argument is unknown or out of range, the data does not fit the model, or the
            model does not ignore the padding of a batch.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_count("n_samples", n_samples)
    check_count("batch_size", batch_size)
    generator = as_generator(generator)
    task = checked_task(model, task)
    logits = Logits(model, task)
    join = collator(model, task)
    made = dict_batches(data, collate or join, n_samples, batch_size or DEFAULT_BATCH, generator)
    batches = (unpacked(batch, join) for batch in made)
    inside = {
        f"model.{weight}": bias and f"model.{bias}" for weight, bias in (layers or {}).items()
    }
    turned = [f"model.{weight}" for weight in transposed]
    factors = partial(fisher_factors, layers=inside, transposed=turned, eigenvalues=eigenvalues)
    measure = factors if inside else fisher_diagonal
    resuming: dict[str, Any] = {} if resume is None else {"resume": resume}
    with gathered(model):  # reading a batch runs the model as well
        fisher = measure(
            logits,
            Stream(batches, n_samples, logits.read),
            estimator=estimator,
            batch_size=batch_size,
            likelihood=logits.likelihood,
            generator=generator,
            progress=progress,
            **resuming,
        )
    return {name.removeprefix("model."): value for name, value in fisher.items()}


def collator(model: nn.Module, task: str | None = None) -> Callable[..., DictBatch]:
    """Return what joins samples to batches for this model, such as a Trainer's ``data_collator``.

    It is :func:`pad_batch` with the model's pad token; for a causal language model it also makes
    labels of ``input_ids`` where there are none.

    Args:
        model, task: as for :func:`sequence_fisher`.

    Raises:
        ValueError: as :func:`sequence_fisher`.
    """
    task = checked_task(model, task)
    return partial(pad_batch, pad_token_id=pad_token_of(model, task), causal_lm=task == "causal_lm")
