"""EWC for LoRA: a penalty on what an adapter does to the weights, not on the adapter's own numbers.

LoRA freezes a weight W and learns a correction Δ = s·BA of low rank. An ordinary EWC on A and B
measures their Fisher information at the moment of consolidation. A fresh adapter has B = 0, and
then the gradient of A, which is a product with B, is zero:

    ∂ℓ/∂A = s Bᵀ (∂ℓ/∂W),      ∂ℓ/∂B = s (∂ℓ/∂W) Aᵀ.

So F_A = 0, A is free, and F_B, measured at the first A, says nothing about B at another A. The
function sees only W + Δ. :class:`LoraEWC` therefore puts the quadratic there:

    λ/2 Σ F_W (Δ − Δ*)²,

with the Fisher information of the frozen weight, which is that of Δ, for ∂ℓ/∂Δ = ∂ℓ/∂W; or, with
its Kronecker factors, λ/2 Σ (Δ − Δ*) ∘ G (Δ − Δ*) A (A and G being the factors).

One adapter can learn many tasks: after each, :meth:`LoraEWC.restart_` adds Δ to W and begins anew
with Δ = 0, so that each task has the full rank for itself. That is EWC-LoRA (Zheng et al., ICLR
2026, arXiv 2602.17559).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.attachment import Attachment
from ewc_tutorial.curvature import Curvature, Kronecker
from ewc_tutorial.ewc import EWC, rates_by_name
from ewc_tutorial.precision import widest
from ewc_tutorial.randomness import as_generator
from ewc_tutorial.sharded import is_spread


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
        curvature: ``diagonal``, or ``kronecker`` (or an instance of it): the factors are those of
            the frozen weight, and the penalty enters as a loss or a gradient only, as there are no
            proximal steps with it.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the model has no LoRA layer of that name, or one whose correction is not s·BA of
            a linear layer (DoRA, embeddings, convolutions); the curvature is another one; or as
            :class:`EWC`. :meth:`attach` and :meth:`proximal_step_` raise NotImplementedError for
            ``kronecker``.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        rule: str | None = None,
        gamma: float = 1.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        adapter: str = "default",
        curvature: str | Curvature = "diagonal",
    ) -> None:
        if curvature not in ("diagonal", "kronecker") and not isinstance(curvature, Kronecker):
            raise ValueError(
                f"curvature of a LoraEWC must be 'diagonal' or 'kronecker', not {curvature!r}."
            )
        # Plain attributes: the layers are parts of the model, not of this module.
        self._adapter = adapter
        self._layers = _lora_layers(model, adapter)
        super().__init__(model, lam, rule, gamma, include, exclude, curvature)

    def values(self) -> dict[str, Tensor]:
        """Return Δ = s·BA per protected weight, in the weight's own layout, differentiable, and
        what is protected as it is."""
        parameters = dict(self.model.named_parameters())
        if any(map(is_spread, parameters.values())):
            raise NotImplementedError(
                "A LoraEWC needs whole weights in every process, and some of the model are spread "
                "over processes: use plain data parallelism."
            )
        return self._checked(
            {
                name: self._layers[name].get_delta_weight(self._adapter)
                if name in self._layers
                else parameters[name]
                for name in self.names
                if name in self._layers or name in parameters
            }
        )

    def weights(self) -> dict[str, Tensor]:
        """Return A and B of every protected weight, and what is protected as it is."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        found: dict[str, Tensor] = {}
        for name in self.names:
            if name in self._layers:
                A, B = self._factors(name)
                found |= {names[id(A)]: A, names[id(B)]: B}
            else:
                found[name] = self.model.get_parameter(name)
        return found

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add the penalty's gradient by A and B to their ``.grad``."""
        if not self.n_tasks or not self.lam:
            return
        trainable = [p for p in self.weights().values() if p.requires_grad]
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.penalty(), trainable)
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def attach(self, optimizer: torch.optim.Optimizer, every: int | None = None) -> Attachment:
        """:meth:`EWC.attach`, with the half-steps of :meth:`proximal_step_`.

        Raises:
            NotImplementedError: the curvature is ``kronecker``.
            TypeError, ValueError: as :meth:`EWC.attach`.
        """
        self._check_half_steps()
        return super().attach(optimizer, every)

    @torch.no_grad()
    def proximal_step_(
        self,
        lr: float | Mapping[str, float],
        scale: Mapping[str, float | Tensor] | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Move B, then A, each to the minimum of penalty + d·change²/2η with the other held fixed.

        In B alone the penalty is quadratic, one small system of equations per row, and so it is in
        A per column. Each half-step is exact, so the penalty never grows, at any λ; for small η
        both together are a gradient step. ``lr`` and ``scale`` go by the names of :meth:`weights`;
        ``start`` is not needed.

        Raises:
            NotImplementedError: the curvature is ``kronecker``.
            ValueError: as :meth:`EWC.proximal_step_`.
        """
        self._check_half_steps()
        weights = self.weights()
        rates = rates_by_name(lr, weights)
        if not self.n_tasks or not self.lam:
            return
        scale = scale or {}
        names = {id(p): name for name, p in weights.items()}

        def moves(parameter: Tensor) -> tuple[float, float | Tensor] | None:
            name = names[id(parameter)]
            if not parameter.requires_grad or not rates.get(name):
                return None
            return rates[name] * self.lam, scale.get(name, 1.0)

        for name in self.names:
            S, mu = self.importance[name], self.anchor[name]
            if name not in self._layers:
                if move := moves(weights[name]):
                    c, d = move
                    pull = 1 / (1 + d / (c * S))
                    weights[name].copy_(weights[name].to(mu).lerp_(mu, pull))
                continue
            layer = self._layers[name]
            if layer.fan_in_fan_out:
                S, mu = S.T, mu.T
            A, B = self._factors(name)
            s = layer.scaling[self._adapter]
            if move := moves(B):
                B.copy_(_proximal_rows(B, s * A, S, mu, *move))
            if move := moves(A):
                c, d = move
                d = d.T if isinstance(d, Tensor) else d
                A.copy_(_proximal_rows(A.T, s * B.T, S.T, mu.T, c, d).T)

    @torch.no_grad()
    def restart_(self, generator: torch.Generator | int | None = None) -> None:
        """Merge the adapter into the frozen weights and begin anew: W ← W + Δ, B ← 0, A as at
        first, and the anchor Δ* ← Δ* − Δ, so that neither the model nor the penalty changes.

        Call it after :meth:`consolidate` and before the next task gets its optimizer; the anchor is
        zero then, except under ``separate``. The frozen weights are others afterwards, so save
        them, and not the adapter alone. In half precision W is rounded.

        Args:
            generator: draws A; a number seeds a new one, ``None`` means 0.

        Raises:
            RuntimeError: the adapter has been merged by PEFT already.
            ValueError: Δ is not finite. Nothing is changed then.
        """
        generator = as_generator(generator)
        deltas = {}
        for name, layer in self._layers.items():
            if layer.merged:
                raise RuntimeError(
                    f"The adapter of {name!r} is merged already: call unmerge_adapter() first."
                )
            deltas[name] = layer.get_delta_weight(self._adapter)
            if not deltas[name].isfinite().all():
                raise ValueError(f"The adapter's correction of {name!r} is not finite.")
        anchor = self.anchor
        for name, layer in self._layers.items():
            if self.n_tasks and name in anchor:
                anchor[name].sub_(deltas[name])
            layer.merge(adapter_names=[self._adapter])
            layer.merged_adapters.clear()  # what is merged now is W's own
            layer.lora_B[self._adapter].weight.zero_()
            if (bias := layer.lora_B[self._adapter].bias) is not None:
                bias.zero_()
            A = layer.lora_A[self._adapter].weight
            bound = A.shape[1] ** -0.5  # PEFT's own default, Kaiming's with a = √5
            A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))

    def _check_half_steps(self) -> None:
        if self.curvature != "diagonal":
            raise NotImplementedError(
                f"a LoraEWC with curvature={self.curvature!r} has no proximal step, as its "
                "half-steps in A and B have a number per entry of Δ: add penalty() to the loss, or "
                "call add_gradient_() after backward()."
            )

    def _factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        layer = self._layers[name]
        return layer.lora_A[self._adapter].weight, layer.lora_B[self._adapter].weight

    def _candidates(self) -> list[str]:
        parts = {
            id(p)
            for layer in self._layers.values()
            for p in (*layer.lora_A.parameters(), *layer.lora_B.parameters())
        }
        others = [n for n, p in self.model.named_parameters() if p.requires_grad]
        others = [n for n in others if id(self.model.get_parameter(n)) not in parts]
        return [*self._layers, *others]


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


def _proximal_rows(
    rows: Tensor, basis: Tensor, S: Tensor, mu: Tensor, c: float, d: float | Tensor
) -> Tensor:
    """Return, for each row b₀, the b that minimises c/2 Σ S (b·basis − μ)² + ½ Σ d (b − b₀)².

    Args:
        rows: (R, r).
        basis: (r, D).
        S, mu: (R, D).
        c: η·λ.
        d: a number, or (R, r).
    """
    wide = (t.to(widest(t.device)) for t in (rows, basis, S, mu))
    rows_wide, basis, S, mu = wide
    d = torch.as_tensor(d).to(rows_wide).expand_as(rows_wide)
    r = len(basis)
    pairs = (basis[:, None] * basis).reshape(r * r, -1)
    system = c * (S @ pairs.T).reshape(-1, r, r) + torch.diag_embed(d)
    right = d * rows_wide + c * (S * mu) @ basis.T
    return torch.linalg.solve(system, right.unsqueeze(-1)).squeeze(-1).to(rows.dtype)
