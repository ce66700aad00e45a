"""The seam between an EWC and the form in which it keeps the Fisher matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ewc_tutorial.sharded import whole

#: How tasks may combine.
RULES = ("separate", "latest", "online", "average")

Tensors = Mapping[str, Tensor]


class Curvature(ABC):
    """A quadratic (θ − μ)ᵀ S (θ − μ) of what an EWC protects, with its anchor μ.

    Its tensors lie among the buffers of the EWC, which saves and moves them. "Values" are always
    those that the penalty is a function of, by name (:meth:`EWC.values
    <ewc_tutorial.ewc.EWC.values>`); they have been checked.

    Attributes:
        names: of the values.
    """

    #: What it is called in a state.
    name: ClassVar[str]
    #: The rules that make sense, the first of them the default.
    rules: tuple[str, ...]
    #: Why the other rules do not, as a clause.
    why_not: str = ""
    #: Whether what is remembered lies where the model does.
    follows: bool = True
    #: Whether it can be spread over processes as the weights are.
    spreads: ClassVar[bool] = False
    #: Whether a proximal step may need the values before the optimizer's step.
    needs_start: ClassVar[bool] = False
    #: After how many steps of an optimizer a proximal step is worth its time.
    every: ClassVar[int] = 1

    names: Sequence[str]

    @property
    def kind(self) -> dict[str, str]:
        """What else, by its name in the state, must agree for a state to fit."""
        return {}

    def protect(self, buffers: dict[str, Tensor], model: nn.Module, values: Tensors) -> None:
        """Lay out what will be remembered of ``values``, in ``buffers``."""
        self._buffers = buffers
        self.names = list(values)
        for name, value in values.items():
            # Sums of many small terms need float32 even where the model is stored in half of it.
            dtype = torch.promote_types(value.dtype, torch.float32)
            zeros = torch.zeros_like(value, dtype=dtype).detach()
            for key, tensor in self._layout(name, zeros).items():
                buffers[key] = tensor
            buffers[buffer_key("anchor", name)] = zeros

    @property
    def anchor(self) -> dict[str, Tensor]:
        """μ per name."""
        return {name: self._buffers[buffer_key("anchor", name)] for name in self.names}

    @property
    @abstractmethod
    def importance(self) -> dict[str, Tensor]:
        """The diagonal of S per name, in the shape of its value."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that :meth:`measure` gives and :meth:`merge` takes."""

    @abstractmethod
    def stored(self) -> dict[str, Tensor]:
        """Return S in the form of :meth:`shapes`."""

    @abstractmethod
    def explain(self) -> dict[str, str]:
        """Say for each name how it is kept, and why."""

    @abstractmethod
    def measure(
        self,
        model: nn.Module,
        data: Any,
        estimator: str,
        fisher: Callable[..., dict[str, Tensor]] | None,
        options: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return the Fisher matrix at the present weights, in the form of :meth:`shapes`."""

    @abstractmethod
    def merge(self, F: Tensors, weight: float, here: Tensors, rule: str, gamma: float) -> None:
        """Take a task in that was measured at ``here``; on an error nothing is changed.

        Raises:
            ValueError: a tensor is missing, or is no Fisher information.
        """

    @abstractmethod
    def quadratic(self, values: Tensors) -> Tensor:
        """Return (θ − μ)ᵀ S (θ − μ), with the constant that a sum of quadratics leaves."""

    @abstractmethod
    def add_gradient_(self, values: Tensors, lam: float) -> None:
        """Add λS(θ − μ) to every ``.grad``."""

    @abstractmethod
    def proximal_step_(
        self,
        values: Tensors,
        lam: float,
        rates: Mapping[str, float],
        scale: Mapping[str, float | Tensor],
        start: Tensors | None = None,
    ) -> None:
        """Move the values to the minimum of λ/2 (θ − μ)ᵀ S (θ − μ) + Σ d (θ − θ_now)² / 2η.

        Args:
            values: θ_now.
            lam: λ.
            rates: η by name; where it is missing or zero, nothing moves.
            scale: d by name, 1 where it is missing.
            start: the values before the optimizer's step, if :attr:`needs_start`.
        """

    @abstractmethod
    def minima(
        self, values: Tensors, F: Tensors, damping: float
    ) -> Callable[[float], dict[str, Tensor]]:
        """Return λ ↦ the minimum of λ/2 (θ − μ)ᵀ S (θ − μ) + ½ (θ − values)ᵀ F (θ − values).

        λ is above zero. F has been made stiffer by ``damping`` times its own mean stiffness. Where
        both matrices are zero, θ stays at the values.

        Raises:
            ValueError: a tensor of F is missing, or is no Fisher information.
        """

    @abstractmethod
    def grow_(self, rows: Mapping[str, int]) -> None:
        """Append rows of zeros for values that have got so many further rows."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all numbers beside the buffers."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the numbers beside the buffers, for a state."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; there may be other names in it."""

    def misfit(self, state: Mapping[str, Any]) -> str | None:
        """Say why a state of the same :attr:`kind` can nevertheless not be loaded."""
        return None

    @abstractmethod
    def _layout(self, name: str, zeros: Tensor) -> dict[str, Tensor]:
        """Return the buffers of a name beside its anchor, given zeros of its shape."""


@cache
def buffer_key(kind: str, name: str) -> str:
    """Return under which name a buffer is stored; it must not contain a dot."""
    return f"{kind}:{name.replace('.', '/')}"


class Remembered:
    """What every step needs of S, μ, λ and η: computed anew only when one of them has changed."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None

    def get(
        self,
        numbers: tuple[object, ...],
        tensors: list[Tensor],
        compute: Callable[[], list[Tensor]],
    ) -> list[Tensor]:
        key = (*numbers, *((id(t), t._version) for t in tensors))
        if key != self._key:
            # Holding on to the tensors keeps another one from getting the same id.
            self._value, self._key, self._tensors = compute(), key, tensors
        return self._value


def checked(F: Tensors, name: str, shape: Sequence[int], signed: bool = False) -> Tensor:
    """Return ``F[name]`` if it is finite, of the shape of its parameter or factor, and not
    negative unless it is ``signed``.

    Raises:
        ValueError: it is not.
    """
    if name not in F:
        raise ValueError(
            f"fisher has no entry for {name!r}, which is protected; is the parameter frozen now?"
        )
    if tuple(F[name].shape) != tuple(shape):
        raise ValueError(
            f"fisher[{name!r}] has shape {tuple(F[name].shape)}, but the parameter has "
            f"{tuple(shape)}."
        )
    new = F[name]
    if whole(new.isfinite().all()) and (signed or not whole((new < 0).any())):
        return new
    least, most = whole(new.min()).item(), whole(new.max()).item()  # NaN, if there is one
    offender = most if math.isfinite(least) and (signed or least >= 0) else least
    raise ValueError(
        f"fisher[{name!r}] must be finite{'' if signed else ' and not negative'}, not {offender:g}."
    )


def same_dtypes(*lists: list[Tensor]) -> bool:
    """Return whether tensors at the same place in the lists have the same precision."""
    return all(len({t.dtype for t in tensors}) == 1 for tensors in zip(*lists, strict=True))


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Return the tensor with rows of zeros at its end."""
    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])


def megabytes(*shapes: Sequence[int]) -> str:
    """Say how much tensors of float32 take."""
    return f"{4e-6 * sum(math.prod(shape) for shape in shapes):.3g} MB"


def gradient_of(parameter: Tensor) -> Tensor:
    """Return ``parameter.grad``, made of zeros where there is none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
