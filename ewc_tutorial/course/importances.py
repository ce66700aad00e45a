"""Importances that rival the Fisher information, each written from its own paper.

All of them say with one number per weight how stiff that weight's spring is to be, and differ in
what they look at. Some look at the finished network: :func:`memory_aware` at how its outputs move,
:func:`reversed_logits` at the gradient of a loss that it gets wrong. Others look at the training:
:class:`SecondMoment` at Adam's own record of squared gradients, :class:`PathIntegral` at how much
each weight has brought the loss down, :class:`RiemannianWalk` at both. A walker is told of the
network before training and called after each step, ``train(…, on_step=walker)``; what it finds is
handed to :meth:`EWC.merge <ewc_tutorial.ewc.EWC.merge>` like any Fisher diagonal.

Scales differ by orders of magnitude, and so does each one's best λ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.fisher.likelihoods.categorical import Categorical
from ewc_tutorial.fisher.samples import make_samples
from ewc_tutorial.fisher.undisturbed import undisturbed
from ewc_tutorial.randomness import as_generator

Importance = dict[str, Tensor]


class _Reversed(Categorical):
    """The likelihood of labels under the softmax of the negated logits."""

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        # By the chain rule a further factor −1, which the square takes away.
        return super().score(-outputs, labels)


def reversed_logits(model: nn.Module, data: Any, **options: Any) -> Importance:
    """Return the empirical Fisher information of a network whose logits are negated (EWC-DR).

        Ω_i = 1/N Σ_n (∂ log softmax(−z(x_n))[y_n] / ∂θ_i)²

    A network that is sure of its label has a vanishing gradient; the network with negated logits is
    sure of a wrong one, and has not. From Liu and Chang 2026, *Elastic Weight Consolidation Done
    Right for Continual Learning* (arXiv:2603.18596), and the line ``logits*-1`` of the authors'
    ``models/ewc_dr.py``. That code squares the mean gradient of each batch and cuts Ω off at 10⁻⁴;
    here each sample's gradient is squared, and nothing is cut off.

    Args:
        model, data: as for :func:`~ewc_tutorial.fisher.fisher_diagonal`, with labels.
        options: ``n_samples``, ``batch_size`` and ``generator``, as there.
    """
    return fisher_diagonal(model, data, "empirical", likelihood=_Reversed(), **options)


def memory_aware(
    model: nn.Module,
    data: Any,
    n_samples: int | None = None,
    batch_size: int = 32,
    generator: torch.Generator | int | None = None,
) -> Importance:
    """Return how strongly the outputs react to each weight; labels are not used (MAS).

        Ω_i = 1/N Σ_n |∂ ‖z(x_n)‖² / ∂θ_i|

    From Aljundi et al. 2018, *Memory Aware Synapses* (arXiv:1711.09601), section 4.1: the mean over
    samples of the *absolute* gradient of the squared length of the outputs z, here the logits.

    Args:
        model: a network without random or batch-wise layers in evaluation mode.
        data, n_samples, generator: as for :func:`~ewc_tutorial.fisher.fisher_diagonal`.
        batch_size: samples whose gradients are held at a time.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def squared_length(values: Importance, x: Tensor) -> Tensor:
        return functional_call(model, values, (x[None],)).square().sum()

    gradients = vmap(grad(squared_length), in_dims=(None, 0))
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    with undisturbed(model):
        for x, _ in make_samples(data, n_samples, as_generator(generator)).batches(batch_size):
            x = x.to(next(iter(parameters.values())).device)
            for name, g in gradients(parameters, x).items():
                sums[name] += g.abs().sum(0)
            count += len(x)
    return {name: total / count for name, total in sums.items()}


class SecondMoment:
    """Adam's running mean of squared gradients at the end of training, for nothing (Squisher).

        Ω = v̂ = v / (1 − β₂ᵗ),   v ← β₂ v + (1 − β₂) g²,   g the mean gradient of a batch.

    From Li, Dangel, Tam and Raffel 2025, *Fishers for Free?* (arXiv:2507.18807). The square is of a
    batch's gradient and not of a sample's, and the mean is over the last steps and not over the
    data at one place. Where the penalty is a proximal step, g is of the loss alone.

    It is also the factory that :func:`~ewc_tutorial.course.training.train` makes its Adam with:
    ``train(…, optimizer=second_moment)``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
        """Return a new Adam and keep a hold of it."""
        self._adam = torch.optim.Adam(parameters, lr=lr, fused=True)
        return self._adam

    def importance(self) -> Importance:
        """Return v̂ by name; zeros for a parameter that has had no gradient."""
        found, beta = {}, self._adam.param_groups[0]["betas"][1]
        for name, p in self._model.named_parameters():
            if state := self._adam.state.get(p):
                found[name] = state["exp_avg_sq"] / (1 - beta ** float(state["step"]))
            elif p.requires_grad:
                found[name] = torch.zeros_like(p)
        return found


class Walker:
    """What importances along the way have in common: −gᵢ Δθᵢ of every step, summed per weight.

    The gradient is the one that the step was made with, at the weights before it, and Δθ what the
    whole step came to, a proximal step of the penalty included.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._here = self._weights()
        self._start = self._here
        self._gain = self._zeros()

    def __call__(self, step: int) -> None:
        """Take in a step of training that has just been made."""
        now = self._weights()
        for name, p in self._model.named_parameters():
            if p.grad is not None and p.requires_grad:
                self._gain[name] -= p.grad.detach() * (now[name] - self._here[name])
        self._here = now

    def _weights(self) -> Importance:
        trained = ((n, p) for n, p in self._model.named_parameters() if p.requires_grad)
        return {name: p.detach().clone() for name, p in trained}

    def _zeros(self) -> Importance:
        return {name: torch.zeros_like(p) for name, p in self._here.items()}


class PathIntegral(Walker):
    """How much each weight has brought the loss down, over how far it has gone (SI).

        Ω_i = max(0, ω_i / (Δ_i² + ξ)),   ω_i = Σ_t −g_i(t) Δθ_i(t),   Δ_i = θ_i(end) − θ_i(start)

    From Zenke, Poole and Ganguli 2017, *Continual Learning Through Synaptic Intelligence*
    (arXiv:1703.04200), equations 3 and 5, for one task. A weight that has made the loss worse would
    have a negative spring; it gets none.

    Args:
        model: the network, before the task.
        damping: ξ > 0; in the paper 0.1 for permuted and 0.001 for Split MNIST.
    """

    def __init__(self, model: nn.Module, damping: float = 0.1) -> None:
        super().__init__(model)
        self._damping = damping

    def importance(self) -> Importance:
        """Return Ω of the steps since this was made."""
        return {
            name: gain.div((self._here[name] - self._start[name]).square() + self._damping).relu_()
            for name, gain in self._gain.items()
        }


class RiemannianWalk(Walker):
    """A running Fisher diagonal plus the loss brought down per distance in it (RWalk).

        F ← αF_batch + (1 − α)F                           every Δt steps
        s ← s + max(0, Σ −g Δθ) / (½ F (θ − θ_Δt)² + ε)   over the Δt steps
        Ω = F / max F + s̄ / max s̄                         s̄: mean of the last s̄ and this s

    From Chaudhry, Dokania, Ajanthan and Torr 2018, *Riemannian Walk for Incremental Learning*
    (arXiv:1801.10112), section 4, with α = 0.9. F_batch is the empirical Fisher diagonal of one
    batch. What is found stands for all tasks so far and takes the place of what was there: rule
    ``online`` with γ = 0.

    Args:
        model: the network, before the first task.
        every: Δt.
        alpha: α, the weight of the new batch.
        epsilon: ε > 0.
    """

    def __init__(
        self, model: nn.Module, every: int = 10, alpha: float = 0.9, epsilon: float = 1e-7
    ) -> None:
        super().__init__(model)
        self._every, self._alpha, self._epsilon = every, alpha, epsilon
        self._fisher: Importance = {}
        self._scores: Importance = {}

    def begin(self, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Get ready for a task, of whose training data ``batch`` draws one batch (x, y)."""
        self._batch = batch
        self._here = self._start = self._weights()
        self._gain, self._score = self._zeros(), self._zeros()

    def __call__(self, step: int) -> None:
        super().__call__(step)
        if step % self._every:
            return
        new = fisher_diagonal(self._model, self._batch(), "empirical")
        for name, F in new.items():
            old = self._fisher.get(name)
            F = F if old is None else self._alpha * F + (1 - self._alpha) * old
            distance = 0.5 * F * (self._here[name] - self._start[name]).square()
            self._score[name] += self._gain[name].relu() / (distance + self._epsilon)
            self._fisher[name] = F
        self._start, self._gain = self._here, self._zeros()

    def importance(self) -> Importance:
        """Return Ω of all tasks so far; call it once at the end of each."""
        before = self._scores
        self._scores = {n: (s + before[n]) / 2 if before else s for n, s in self._score.items()}
        return {
            name: F / _largest(self._fisher) + self._scores[name] / _largest(self._scores)
            for name, F in self._fisher.items()
        }


def _largest(tensors: Importance) -> float:
    return max(float(t.max()) for t in tensors.values()) or 1.0
