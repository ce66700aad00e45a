"""How far the springs can be trusted along the step that training takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher.inputs import apply, n_samples
from ewc_tutorial.fisher.likelihoods import make_likelihood
from ewc_tutorial.fisher.likelihoods.base import Draws
from ewc_tutorial.fisher.samples import make_samples
from ewc_tutorial.fisher.undisturbed import only_trainable, undisturbed
from ewc_tutorial.precision import double


def predicted_rise(ewc: EWC) -> float:
    """Return what the penalty foretells, in nats, of the rise of the old tasks' mean loss:
    ½ (θ − μ)ᵀ S (θ − μ), with the constant of :meth:`EWC.penalty <ewc_tutorial.ewc.EWC.penalty>`
    under ``separate``, over the number of tasks that S is the sum of.

    Along the steps that training takes the diagonal foretells far too little. In lesson 13 the loss
    rose by 1.3 nats after training without a penalty, where the diagonal said 0.016 and Kronecker
    factors 0.19; in lesson 05, with λ = 1, by 0.60 where they said 0.09 and 0.19. Lesson 01 shows
    that it can err in the other direction, too.
    """
    with _lambda_one(ewc):
        return float(ewc.penalty().detach()) / ewc.summed


def softness(
    ewc: EWC,
    old_data: Any,
    *,
    n: int | None = 1000,
    likelihood: str = "categorical",
    **options: Any,
) -> float:
    """Return how many times too soft the springs are along the step to the present weights.

    This is vᵀFv / vᵀSv, where v leads from the anchor to the weights after training on the new task
    *without* a penalty, S is what the EWC keeps and F the whole Fisher matrix, which the diagonal
    and Kronecker factors are parts of. F itself is not needed: vᵀFv = E[Σ_k (s_kᵀ J v)²], J being
    the Jacobian of the outputs and Σ_k s_k s_kᵀ the Fisher information of the outputs (Martens
    2020, *New insights and perspectives on the natural gradient method*, section 9). Along random
    steps it is near 1, along those that training takes it was 24 in lesson 13. So λ = Bayes' value
    times this makes the springs as stiff, in that direction, as Bayes' rule wants them.

    Args:
        ewc: with the old task consolidated; its model has been trained since, without a penalty.
        old_data: of the consolidated task (of all of them, if several are), in any form that
            :func:`~ewc_tutorial.fisher.fisher_diagonal` takes; labels are not needed.
        n: samples to use, None for all.
        likelihood, options: those that the Fisher information was measured with.

    Raises:
        ValueError: nothing is consolidated, the model stands at the anchor or moved only where S is
            zero, what is protected is no parameter of the model, or ``old_data`` is empty.
    """
    if not ewc.n_tasks:
        raise ValueError("softness compares with what is consolidated: consolidate a task first.")
    values, model = ewc.values(), ewc.model
    if values.keys() != ewc.weights().keys():
        raise ValueError(f"softness knows weights only, not what a {type(ewc).__name__} protects.")
    anchor = {name: mu.to(values[name]) for name, mu in ewc.anchor.items()}
    step = {name: value.detach() - anchor[name] for name, value in values.items()}
    springs = _stiffness(ewc, step)
    if not springs > 0:
        raise ValueError(
            "The penalty is zero at the present weights: train the model on the new task first, "
            "without a penalty."
        )
    reads = make_likelihood(likelihood, **options)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fixed = {name: tensor.detach() for name, tensor in everything.items() if name not in values}
    device = next(iter(values.values())).device
    whole, count = 0.0, 0
    samples = make_samples(old_data, n, torch.Generator().manual_seed(0))
    with undisturbed(model), torch.no_grad():
        for x, y in samples.batches(256):
            x = apply(lambda t: t.to(device), x)
            positional, named = ((x,), {}) if isinstance(x, Tensor) else ((), dict(x))

            def outputs(weights: Any, args: Any = positional, kwargs: Any = named) -> Any:
                return functional_call(model, fixed | weights, args, kwargs)

            f, Jv, *_ = jvp(outputs, (anchor,), (step,))
            y = None if y is None else y.to(device)
            for s in reads.seeds("exact", f, y, Draws(torch.Generator())):
                whole += (double(s) * double(Jv)).flatten(1).sum(1).square().sum().item()
            count += n_samples(x)
    if not count:
        raise ValueError("old_data must hold at least one sample, but it is empty.")
    return whole / count / springs


def _stiffness(ewc: EWC, step: Mapping[str, Tensor]) -> float:
    """Return vᵀSv / T of the step v = θ − μ, T being the number of tasks that S is the sum of."""
    with _lambda_one(ewc), only_trainable(ewc.model, step), torch.enable_grad():
        # v · ∂penalty, as the penalty itself has a constant beside ½ vᵀSv under ``separate``.
        slopes = torch.autograd.grad(ewc.penalty(), list(ewc.values().values()))
    pairs = zip(step.values(), slopes, strict=True)
    return sum((double(v) * double(slope)).sum().item() for v, slope in pairs) / ewc.summed


@contextmanager
def _lambda_one(ewc: EWC) -> Iterator[None]:
    """Within the block the penalty is ½ (θ − μ)ᵀ S (θ − μ), also of an EWC whose λ is 0."""
    lam, ewc.lam = ewc.lam, 1.0
    try:
        yield
    finally:
        ewc.lam = lam
