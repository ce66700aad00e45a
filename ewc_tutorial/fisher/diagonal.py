"""The diagonal Fisher information of any ``nn.Module``, from exact per-sample gradients.

    F = 1/N Σ_n E_y[(∂ log p(y | x_n, θ) / ∂θ)²]

The square is of one sample's gradient. Squaring the gradient of a batch, as ``backward()`` would
give it, is another and much smaller quantity (the estimator ``batched``).

How it is done: ``measurement.py`` goes through the data, of which ``samples.py`` makes batches
whatever it is; ``likelihoods`` says which gradients to start from at the model's outputs, and
``engine.py`` carries them to the parameters.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.fisher.likelihoods import ESTIMATORS, make_likelihood
from ewc_tutorial.fisher.likelihoods.base import Draws, Likelihood, Seeds
from ewc_tutorial.fisher.measurement import Progress, check_choice, engine_for, measured, to_device
from ewc_tutorial.fisher.probe import PROBE_SIZE
from ewc_tutorial.fisher.samples import make_samples
from ewc_tutorial.randomness import as_generator

#: Of a layer's block: the products of those of its factors, or the right ones in their basis.
EIGENVALUES = ("product", "exact")


def fisher_diagonal(
    model: nn.Module,
    data: Any,
    estimator: str = "exact",
    n_samples: int | None = None,
    batch_size: int | None = None,
    likelihood: str | Likelihood = "categorical",
    generator: torch.Generator | int | None = None,
    progress: bool | Progress = False,
    *,
    classes: Sequence[int] | Tensor | None = None,
    ignore_index: int = -100,
    variance: float = 1.0,
    class_dim: int | None = None,
    distributed: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information: the mean over samples of the squared score.

    Args:
        model: the network, differentiated in evaluation mode; its mode, gradients, buffers and the
            global random state are afterwards as before.
        data: a pair (x, y) of tensors, a ``Dataset`` of items (x, y), an iterable of batches (x, y)
            such as a ``DataLoader``, gone through once, or a task, of which the data set ``train``
            is taken. y may be None where no labels are needed. x may be a dictionary of tensors,
            with which the model is then called by name, ``model(**x)``.
        estimator: the label that the score is taken at.
            ``exact``: the expectation over all labels under the model.
            ``sampled``: one label per output drawn from the model.
            ``empirical``: the data's label.
            ``argmax``: the model's own top class.
            ``batched``: the data's label, the gradient *averaged over a batch before squaring*: the
            widespread mistake, for comparison only.
        n_samples: use a random subset of so many samples, without replacement (all, if there are
            fewer); of an iterable, the first so many.
        batch_size: samples per pass (default: what fits 64 MiB on a CPU and 1 GiB elsewhere, and
            one sample at least). It bounds memory and does not change the result, but for
            ``batched``, where it is the size of the batch that is averaged (default: 32, or the
            iterable's own batches).
        likelihood: how the outputs are read.
            ``categorical``: logits (B, C) with labels (B,), as whole numbers or one-hot; or
            (B, T, C) with labels (B, T), where a sample is one sequence and its score the gradient
            of the summed log-likelihoods of its tokens; or PyTorch's (B, C, H, W) of pixels. Given
            the inputs the tokens' labels are independent, so the cross terms of their scores vanish
            in the expectation: ``exact`` is then the sum over tokens of each token's expected
            squared score, in T·(C − 1) backward passes per batch (with a warning from a thousand
            on). ``sampled`` estimates the same in one.
            ``bernoulli``: logits (B,) or (B, K) of independent labels 0 or 1.
            ``gaussian``: means (B,) or (B, K) with a fixed variance.
            A :class:`~ewc_tutorial.fisher.Likelihood` of your own will do as well.
        generator: draws the subset and the labels; a number seeds a new one, None means 0, so that
            two calls agree. The global random state is never used.
        progress: show a progress bar if it takes longer than about a second; or call this after
            each batch with the number of samples done and that of all, None where only the end of
            a stream tells.
        classes: the active classes, as numbers or as a mask (C,): the softmax is over these alone.
        ignore_index: tokens of this label do not count.
        variance: of the likelihood ``gaussian``.
        class_dim: the dimension of the classes in outputs with more than two, where the labels do
            not tell: −1 for (B, T, C), 1 for (B, C, H, W).
        distributed: if ``torch.distributed`` is initialised, sum over all processes, each of which
            must then call this with its share of the data. A model whose weights FSDP2 has spread
            over processes is whole in each of them meanwhile.
        resume: a file in which the sums are saved about every minute and at the end. If it is
            there, the measurement goes on from it, to the same bits; the data is gone through
            again, without being calculated with. It is left where it is. A generator of
            ``sampled`` must stand where it stood at the beginning.

    Returns:
        One tensor per trainable parameter, by its name in ``model.named_parameters()``, of its
        shape and on its device, in float32 at least.

    Raises:
        TypeError: ``data`` or its labels have a type that does not fit; the model is TorchScript or
            has a complex parameter.
        ValueError: an argument is unknown or out of range, ``resume`` is of another measurement,
            the data is empty, labels are missing or
            do not fit the outputs, the model has no trainable parameter, is random in evaluation
            mode or cuts its outputs off, or a result is not finite.
    """
    return measured(
        model,
        data,
        estimator,
        {},
        n_samples,
        batch_size,
        make_likelihood(likelihood, classes, ignore_index, variance, class_dim),
        generator,
        progress,
        distributed,
        resume=resume,
    )


def fisher_factors(
    model: nn.Module,
    data: Any,
    layers: Mapping[str, str | None],
    estimator: str = "exact",
    n_samples: int | None = None,
    batch_size: int | None = None,
    likelihood: str | Likelihood = "categorical",
    generator: torch.Generator | int | None = None,
    progress: bool | Progress = False,
    *,
    eigenvalues: str = "product",
    classes: Sequence[int] | Tensor | None = None,
    ignore_index: int = -100,
    variance: float = 1.0,
    class_dim: int | None = None,
    distributed: bool = True,
    transposed: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return Kronecker factors of the Fisher information of some layers, of others the diagonal.

    A layer's block of F is taken for G ⊗ A, with A = E[mean_t a aᵀ] of its inputs a and
    G = E[Σ_t g gᵀ] of the gradients g by its outputs, t being the positions (of a sequence, or of a
    convolution's kernel) of one sample: see ``closed_forms/factors.py``. Padded positions count in
    A as any others.

    Args:
        model, data, n_samples, batch_size, likelihood, generator: as for :func:`fisher_diagonal`.
        progress, classes, ignore_index, variance, class_dim, distributed: as there.
        layers: names of the weights of linear layers and of convolutions without groups, each with
            the name of its bias, or None to leave that to the diagonal. Several uses of a weight
            are further positions.
        estimator: as for :func:`fisher_diagonal`, but not ``batched``.
        transposed: those weights of ``layers`` that are stored as (I, O), as GPT-2's are.
        eigenvalues: ``exact`` also measures the diagonal of the block in the eigenvectors of its
            factors, in a second pass over the same samples with the same labels (EKFAC, George et
            al. 2018). Data that can be gone through but once is held in memory for it.

    Returns:
        Per weight of ``layers`` two tensors, ``"NAME:A"`` of shape (I, I) and ``"NAME:G"`` (O, O),
        in float32 at least; I are the weights of one output in their order, and one more for the
        bias at the end. With eigenvalues ``exact`` three more: the eigenvectors ``"NAME:UA"`` and
        ``"NAME:UG"`` in columns, which are zero where the eigenvalue is, and ``"NAME:E"`` (O, I),
        so that the block is taken for (U_G ⊗ U_A) diag(E) (U_G ⊗ U_A)ᵀ. Per other trainable
        parameter its diagonal under its name.

    Raises:
        TypeError, ValueError: as :func:`fisher_diagonal`; or a layer has no factors.
    """
    check_choice("eigenvalues", eigenvalues, EIGENVALUES)
    if estimator == "batched":
        raise ValueError(
            "estimator 'batched' squares the gradient of a batch, which has no Kronecker factors."
        )
    return measured(
        model,
        data,
        estimator,
        layers,
        n_samples,
        batch_size,
        make_likelihood(likelihood, classes, ignore_index, variance, class_dim),
        generator,
        progress,
        distributed,
        transposed,
        eigenvalues == "exact",
    )


def explain_fisher(
    model: nn.Module,
    data: Any,
    estimator: str = "exact",
    likelihood: str | Likelihood = "categorical",
    **options: Any,
) -> dict[str, str]:
    """Tell how :func:`fisher_diagonal` would treat each parameter, from the first few samples.

    Args:
        model, data, estimator, likelihood: as for :func:`fisher_diagonal`.
        options: ``classes``, ``ignore_index``, ``variance`` or ``class_dim``, as there.

    Returns:
        Per trainable parameter the rule it gets: a closed form of its layer, ``torch.func`` over
        samples, or the loop over samples, which is slow.

    Raises:
        TypeError, ValueError: as :func:`fisher_diagonal`.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    if estimator == "batched":
        raise ValueError("estimator 'batched' has no per-sample gradients to explain.")
    rule = make_likelihood(likelihood, **options)
    generator = as_generator(None)
    with engine_for(model) as (engine, prefix):
        head = make_samples(data, None, generator).head(PROBE_SIZE)
        if head is None:
            raise ValueError("data must have at least one sample, but it is empty.")
        x, y = to_device(head, engine.device)

        def first_seed(outputs: Tensor) -> Seeds:
            found = rule.seeds(estimator, outputs, y, Draws(generator))
            return Seeds(lambda: islice(found, 1), 1)

        engine.squares(x, first_seed)
        return {prefix + name: engine.explanation[name] for name in engine.parameters}
