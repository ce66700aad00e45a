"""EWC for LoRA: a penalty on what an adapter does to the weights, not on the adapter's own numbers.

LoRA freezes a weight W and learns a correction Δ = s·BA of low rank. An ordinary EWC on A and B
measures their Fisher information at the moment of consolidation. A fresh adapter has B = 0, and
then the gradient of A, which is a product with B, is zero:

    ∂ℓ/∂A = s Bᵀ (∂ℓ/∂W),      ∂ℓ/∂B = s (∂ℓ/∂W) Aᵀ.

So F_A = 0, A is free, and F_B, measured at the first A, says nothing about B at another A. The
function sees only W + Δ. :class:`LoraEWC` therefore puts the quadratic there:

    λ/2 Σ F_W (Δ − Δ*)²,

with the Fisher information of the frozen weight, which is that of Δ, for ∂ℓ/∂Δ = ∂ℓ/∂W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.ewc import EWC
from ewc_tutorial.huggingface.sequences import only_trainable
from ewc_tutorial.precision import widest


class LoraEWC(EWC):
    """EWC on Δ = s·BA of every linear layer with a LoRA adapter, used like :class:`EWC`.

    What is trainable without being part of an adapter (a new head in ``modules_to_save``) is
    protected as it is. Importance and anchor have the size of the frozen weights that have an
    adapter: that is the price for a penalty which means the same at every A and B.

    Args:
        model: a PEFT model, or any model with LoRA layers.
        lam, rule, gamma, include, exclude: as for :class:`EWC`; the names are those of the frozen
            weights, such as ``base_model.model.….c_attn.base_layer.weight``.
        adapter: the adapter's name.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the model has no LoRA layer of that name, or one whose correction is not s·BA of
            a linear layer (DoRA, embeddings, convolutions); or as :class:`EWC`.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        rule: str = "separate",
        gamma: float = 1.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        adapter: str = "default",
    ) -> None:
        # Plain attributes: the layers are parts of the model, not of this module.
        self._adapter = adapter
        self._layers = _lora_layers(model, adapter)
        super().__init__(model, lam, rule, gamma, include, exclude)

    def delta(self) -> dict[str, Tensor]:
        """Return Δ = s·BA per protected weight, in the weight's own layout, differentiable."""
        return {
            name: layer.get_delta_weight(self._adapter)
            for name, layer in self._layers.items()
            if name in self.names
        }

    def consolidate(
        self, data: Any, estimator: str = "exact", *, weight: float = 1.0, **options: Any
    ) -> None:
        """Do what :meth:`EWC.consolidate` does, with the Fisher information of the weights.

        For dicts of sequences take
        :func:`~ewc_tutorial.huggingface.consolidate` instead.
        """
        with only_trainable(self.model, self.names):
            super().consolidate(data, estimator, weight=weight, **options)

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add the penalty's gradient by A and B to their ``.grad``."""
        if not self.n_tasks or not self.lam:
            return
        with torch.enable_grad():
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(self.penalty(), trainable, materialize_grads=True)
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    @torch.no_grad()
    def proximal_step_(self, lr: float) -> None:
        """Move B, then A, each to the minimum of penalty + ‖change‖²/2η with the other held fixed.

        In B alone the penalty is quadratic, one small system of equations per row, and so it is in
        A per column. Each half-step is exact, so the penalty never grows, at any λ; for small η
        both together are a gradient step.
        """
        if not self.n_tasks or not self.lam or not lr:
            return
        c = lr * self.lam
        for name in self.names:
            S, mu = self.importance[name], self.anchor[name]
            if name not in self._layers:
                parameter = self.model.get_parameter(name)
                pull = 1 / (1 + 1 / (c * S))
                parameter.copy_(parameter.to(mu).lerp_(mu, pull))
                continue
            layer = self._layers[name]
            if layer.fan_in_fan_out:
                S, mu = S.T, mu.T
            A, B = layer.lora_A[self._adapter].weight, layer.lora_B[self._adapter].weight
            s = layer.scaling[self._adapter]
            if B.requires_grad:
                B.copy_(_proximal_rows(B, s * A, S, mu, c))
            if A.requires_grad:
                A.copy_(_proximal_rows(A.T, s * B.T, S.T, mu.T, c).T)

    def _candidates(self) -> list[str]:
        parts = {
            id(p)
            for layer in self._layers.values()
            for p in (*layer.lora_A.parameters(), *layer.lora_B.parameters())
        }
        others = [n for n, p in self.model.named_parameters() if p.requires_grad]
        others = [n for n in others if id(self.model.get_parameter(n)) not in parts]
        return [*self._layers, *others]

    def _current(self) -> dict[str, Tensor]:
        deltas = {n: layer.get_delta_weight(self._adapter) for n, layer in self._layers.items()}
        return dict(self.model.named_parameters()) | deltas


def _lora_layers(model: nn.Module, adapter: str) -> dict[str, Any]:
    """Return the LoRA layers by the names of their frozen weights."""
    try:
        from peft.tuners.lora import Linear, LoraLayer
    except ImportError as error:
        raise ImportError("LoraEWC needs PEFT: pip install 'ewc-tutorial[huggingface]'") from error
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer) or adapter not in {
            *module.lora_A,
            *module.lora_embedding_A,
        }:
            continue
        if not isinstance(module, Linear) or adapter in module.lora_variant:
            raise ValueError(
                f"LoraEWC knows plain LoRA on linear layers, where Δ = s·BA; {path!r} is another "
                f"kind ({type(module).__name__})."
            )
        found[f"{path}.base_layer.weight"] = module
    if not found:
        raise ValueError(
            f"model has no LoRA adapter {adapter!r}: make one with peft.get_peft_model first."
        )
    return found


def _proximal_rows(rows: Tensor, basis: Tensor, S: Tensor, mu: Tensor, c: float) -> Tensor:
    """Return, for each row b₀ of (R, r), the b that minimises c/2 Σ S (b·basis − μ)² + ½‖b − b₀‖².

    Args:
        rows: (R, r).
        basis: (r, D).
        S, mu: (R, D).
        c: η·λ.
    """
    rows64, basis, S, mu = (t.to(widest(t.device)) for t in (rows, basis, S, mu))
    r = len(basis)
    pairs = (basis[:, None] * basis).reshape(r * r, -1)
    system = c * (S @ pairs.T).reshape(-1, r, r) + torch.eye(r).to(S)
    right = rows64 + c * (S * mu) @ basis.T
    return torch.linalg.solve(system, right.unsqueeze(-1)).squeeze(-1).to(rows.dtype)
