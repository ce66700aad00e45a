"""A diagonal in three bytes per weight: S in one, μ in two or in a file.

The error of S is random and right in the mean (see ``minifloat.py``): a penalty sums it over all
weights, where it mostly cancels. What it does to results is in ``experiments/compact_state.py``.
The error of the anchor moves weights, so it is smaller. Rounded to half precision it costs what
rounding the model does, at most λ/2 Σ S (u μ)² with u = 2⁻¹¹ for float16, and nothing for a model
that is in half precision itself.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ewc_tutorial.curvature.base import RULES, Tensors, buffer_key, checked, gradient_of
from ewc_tutorial.curvature.diagonal import Diagonal
from ewc_tutorial.curvature.mapped import MappedCheckpoint
from ewc_tutorial.curvature.minifloat import numbers, rounded, scale_for
from ewc_tutorial.fisher.saved import checksum
from ewc_tutorial.precision import widest

#: Weights that a step works on at a time, in float32.
PIECE = 2**18


class Compact(Diagonal):
    """:class:`Diagonal` in at most three bytes per weight, where that takes eight.

    S is stored as 8-bit floating-point numbers with a scale per tensor, each within an eighth of
    its value and right in the mean over tasks. Steps are computed in float32, piece by piece, so
    they need no further memory of the model's size.

    Args:
        anchor: where μ is kept. ``None``: in the model's own precision if that is half precision,
            and exactly so but for the rule ``separate`` after several tasks; else in float16. A
            ``torch.dtype``: in that. A path: in the model's own checkpoint, a safetensors file or a
            folder with some, which is mapped into memory and takes none. It must hold the weights
            at the moment of consolidation (``model.save_pretrained(path)``, then ``consolidate``)
            and stay as it is until the next one. That rules out ``separate``, whose μ is a mean.
        device: where S and μ lie, such as ``"cpu"`` beside a model on a GPU, which gets them piece
            by piece; by default with the model.

    Raises:
        ValueError: when a task is merged, a weight is too large for float16, or the checkpoint has
            other weights than the model.
        FileNotFoundError: there is no such checkpoint then.
        RuntimeError: at a step, the checkpoint has been written over.
    """

    name = "compact"
    spreads: ClassVar[bool] = False

    def __init__(
        self,
        anchor: torch.dtype | str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.path = None
        if anchor is not None and not isinstance(anchor, torch.dtype):
            self.path = Path(anchor)
            self.rules = tuple(rule for rule in RULES if rule != "separate")
            self.why_not = "its anchor is a mean of optima, which no checkpoint holds"
        elif anchor is not None and not anchor.is_floating_point:
            raise ValueError(f"anchor must be a floating-point type or a path, not {anchor!r}.")
        self.dtype = anchor if isinstance(anchor, torch.dtype) else None
        self.device = None if device is None else torch.device(device)
        self.follows = device is None
        self._checkpoint: MappedCheckpoint | None = None
        self._checksums: dict[str, int] = {}

    def protect(self, buffers: dict[str, Tensor], model: nn.Module, values: Tensors) -> None:
        self._buffers = buffers
        self.names = list(values)
        for name, value in values.items():
            device = self.device or value.device
            codes = torch.zeros(value.shape, dtype=torch.uint8, device=device)
            buffers[buffer_key("importance", name)] = codes
            if self.path is None:
                half = value.dtype if value.dtype.itemsize == 2 else torch.float16
                zeros = torch.zeros(value.shape, dtype=self.dtype or half, device=device)
                buffers[buffer_key("anchor", name)] = zeros
        self.reset()

    @property
    def kind(self) -> dict[str, str]:
        return {"anchor": "memory" if self.path is None else "file"}

    @property
    def anchor(self) -> dict[str, Tensor]:
        if self.path is None:
            return super().anchor
        if self._checkpoint is None:
            nothing = torch.zeros(())
            return {name: nothing.expand(shape) for name, shape in self.shapes().items()}
        return {name: self._checkpoint[name] for name in self.names}

    @property
    def importance(self) -> dict[str, Tensor]:
        return {name: numbers(self._codes(name), self._scales[name]) for name in self.names}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._codes(name).shape) for name in self.names}

    def explain(self) -> dict[str, str]:
        anchor = "in a file"
        if self.path is None:
            anchor = f"in {str(next(iter(self.anchor.values())).dtype).removeprefix('torch.')}"
        return dict.fromkeys(self.names, f"diagonal: S in 8 bits, anchor {anchor}")

    def merge(self, F: Tensors, weight: float, here: Tensors, rule: str, gamma: float) -> None:
        for name in self.names if self.path is None else ():
            _check_room(name, here[name], self.anchor[name].dtype)
        checkpoint = None if self.path is None else self._opened(here)
        total_weight = gamma * self._total_weight + weight
        share = weight / total_weight if total_weight else 0.0
        keep, take = {"average": (1 - share, share), "online": (gamma, weight)}.get(
            rule, (1.0, weight)
        )
        # F may be measured while it is gone through, so that nothing is held but what is kept.
        made = {
            name: self._taken_in(name, F, here[name], keep, take, rule == "separate")
            for name in self.names
        }
        for name, (codes, scale, anchor, cost) in made.items():
            self._codes(name).copy_(codes)
            self._scales[name] = scale
            self._constants[name] += cost
            if self.path is None:
                self.anchor[name].copy_(anchor)
        self._merges += 1
        self._total_weight = total_weight
        if checkpoint is not None:
            self._checkpoint = checkpoint
            self._checksums = {name: checksum(mu) for name, mu in self.anchor.items()}

    def _taken_in(
        self, name: str, fisher: Tensors, here: Tensor, keep: float, take: float, mean: bool
    ) -> tuple[Tensor, float, Tensor, float]:
        """Return S of a name as keep·S + take·F, in codes with their scale; μ, which is ``here``
        or, if ``mean``, the mean of both; and what both quadratics cost there."""
        codes, scale = self._codes(name), self._scales[name]
        F = checked(fisher, name, codes.shape)

        def sums() -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
            for rows in _pieces(codes.shape):
                old, new = keep * numbers(_at(codes, rows), scale), _at(F, rows)
                new = take * new.to(old)
                # A sum that is too large stays the largest number there is.
                yield rows, old, new, (old + new).clamp_max_(torch.finfo(old.dtype).max)

        parts = (total for *_, total in sums() if total.numel())
        largest = max((total.max().item() for total in parts), default=0.0)
        new_codes, new_scale, cost = torch.empty_like(codes), scale_for(largest), 0.0
        anchor = torch.empty_like(self.anchor[name]) if mean else here
        # Its own for each merge, so that errors of one task are independent of those of others.
        seed = zlib.crc32(f"{self._merges + 1} {name}".encode())
        generator = torch.Generator().manual_seed(seed)
        for rows, old, new, total in sums():
            if mean:
                part = torch.where(total > 0, new / total, 1.0)
                mu = _at(self.anchor[name], rows).to(total)
                offset = _at(here, rows).to(total) - mu
                cost += (old * part * offset.square()).sum(dtype=widest(total.device)).item()
                _at(anchor, rows).copy_(mu + part * offset)
            _at(new_codes, rows).copy_(rounded(total, new_scale, generator))
        return new_codes, new_scale, anchor, cost

    def quadratic(self, values: Tensors) -> Tensor:
        total: Tensor | float = sum(self._constants.values())
        for name in self.names:
            total = total + _Quadratic.apply(values[name], self, name)
        return torch.as_tensor(total)

    def add_gradient_(self, values: Tensors, lam: float) -> None:
        for name in self.names:
            gradient = gradient_of(values[name])
            for S, mu, theta, slope in self.pieces(name, values[name], gradient):
                slope.add_(S.mul_(theta - mu), alpha=lam)

    def proximal_step_(
        self,
        values: Tensors,
        lam: float,
        rates: Mapping[str, float],
        scale: Mapping[str, float | Tensor],
        start: Tensors | None = None,
    ) -> None:
        """Take the step θ ← (dθ + ηλSμ) / (d + ηλS) of each weight."""
        for name in self.names:
            if not (lr := rates.get(name)):
                continue
            d: Any = scale.get(name, 1.0)
            parts = (d,) if isinstance(d, Tensor) else ()
            for S, mu, theta, *ds in self.pieces(name, values[name], *parts):
                largest = torch.finfo(S.dtype).max / 2
                stiffness = S.mul_(lam).mul_(lr).clamp_max_(largest)
                share = stiffness.div_(stiffness + (ds[0] if ds else d))
                if theta.dtype == mu.dtype:
                    theta.lerp_(mu, share)
                else:
                    theta.copy_(theta.to(mu).lerp_(mu, share))

    def pieces(self, name: str, value: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield S and μ of some rows after the other, in float32 at least and where the value is,
        with the same rows of the value and of further tensors of its shape, as views."""
        codes, anchor = self._codes(name), self.anchor[name]
        if self._checkpoint is not None:
            self._checkpoint.check()
        dtype = torch.promote_types(value.dtype, torch.float32)
        for rows in _pieces(codes.shape):
            S = numbers(_at(codes, rows).to(value.device), self._scales[name]).to(dtype)
            mu = _at(anchor, rows).to(value.device, dtype)
            yield S, mu, *(_at(tensor, rows) for tensor in (value, *others))

    def grow_(self, rows: Mapping[str, int]) -> None:
        if rows and self.path is not None:
            raise RuntimeError(
                f"Parameter {next(iter(rows))!r} has got further rows, which the checkpoint that "
                "is its anchor does not have: keep the anchor in memory, Compact()."
            )
        super().grow_(rows)

    def reset(self) -> None:
        super().reset()
        self._scales = dict.fromkeys(self.names, 1.0)
        self._merges = 0
        self._checkpoint = None
        self._checksums = {}

    def state(self) -> dict[str, Any]:
        own = {"scales": dict(self._scales), "merges": self._merges}
        found = super().state() | self.kind | own
        return found | ({"checksums": dict(self._checksums)} if self._checksums else {})

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._scales |= {n: state["scales"][n] for n in self.names if n in state["scales"]}
        self._merges = state["merges"]
        self._checksums = {n: c for n, c in state.get("checksums", {}).items() if n in self.names}
        self._checkpoint = None
        if self._checksums:
            assert self.path is not None  # else it were another kind
            self._checkpoint = MappedCheckpoint(self.path)

    def misfit(self, state: Mapping[str, Any]) -> str | None:
        if self.path is None or "checksums" not in state:
            return None
        file = MappedCheckpoint(self.path)
        for name, number in state["checksums"].items():
            if name in self.names and (name not in file or checksum(file[name]) != number):
                return (
                    f"anchor {str(self.path)!r} holds another {name!r} than the checkpoint that "
                    "was consolidated: give the path of that one."
                )
        return None

    def _codes(self, name: str) -> Tensor:
        return self._buffers[buffer_key("importance", name)]

    def _opened(self, here: Tensors) -> MappedCheckpoint:
        assert self.path is not None  # there is a checkpoint
        file = MappedCheckpoint(self.path)
        for name in self.names:
            value = here[name]
            if name not in file or not _equal(file[name], value):
                raise ValueError(
                    f"anchor {str(self.path)!r} does not hold {name!r} as the model has it now: "
                    "save the model there first, model.save_pretrained(…)."
                )
        return file


class _Quadratic(torch.autograd.Function):
    """Σ S (θ − μ)² of one parameter, without a graph that holds S."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, kept: Compact, name: str) -> Tensor:
        ctx.save_for_backward(value)
        ctx.of = kept, name
        parts = [S.mul_((theta - mu).square_()).sum() for S, mu, theta in kept.pieces(name, value)]
        return torch.stack(parts).sum() if parts else value.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (value,), (kept, name) = ctx.saved_tensors, ctx.of
        # Written with what can be differentiated again.
        parts = [2 * S * (theta - mu) for S, mu, theta in kept.pieces(name, value)]
        slope = torch.cat(parts).reshape(value.shape) if parts else torch.zeros_like(value)
        return (gradient * slope).to(value.dtype), None, None


def _pieces(shape: torch.Size) -> Iterator[slice]:
    """Yield slices of the first dimension that have about :data:`PIECE` numbers, one at least."""
    rows = shape[0] if shape else 1
    step = max(1, PIECE * rows // max(1, shape.numel()))
    return (slice(i, i + step) for i in range(0, rows, step))


def _at(tensor: Tensor, rows: slice) -> Tensor:
    """Return some rows, as a view; a tensor without dimensions is its own row."""
    return (tensor if tensor.ndim else tensor.unsqueeze(0))[rows]


def _equal(stored: Tensor, value: Tensor) -> bool:
    return stored.shape == value.shape and all(
        torch.equal(_at(stored, rows), _at(value, rows).to(stored))
        for rows in _pieces(stored.shape)
    )


def _check_room(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.numel() and value.abs().max() > torch.finfo(dtype).max:
        raise ValueError(
            f"Parameter {name!r} has weights above {torch.finfo(dtype).max:g}, too large for an "
            f"anchor in {str(dtype).removeprefix('torch.')}: Compact(anchor=torch.float32) has "
            "room."
        )
