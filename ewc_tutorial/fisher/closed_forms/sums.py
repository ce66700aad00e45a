"""Squares the per-sample gradients that ``layers.py`` describes, and sums them.

A *reducer* takes all parts of one parameter, one for each use, and yields Σ_n (Σ_parts gradient)²,
summed over as many backward passes as it is shown. What does not depend on the passes is computed
once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ewc_tutorial.fisher.closed_forms.layers import Broadcast, Direct, Part, Product, Rows


class Reducer:
    """Sums the squared per-sample gradients of one parameter over samples and backward passes."""

    def add(self, gradients: list[Tensor]) -> None:
        """Take one backward pass in: the gradient by the output of each part's call."""
        raise NotImplementedError

    def result(self) -> Tensor:
        """Return the sums, in any shape with the parameter's elements in order."""
        raise NotImplementedError


class SquaredFactors(Reducer):
    """One product at one position: (g ⊗ a)² = g² ⊗ a², so only Σ g² is kept per sample.

    However many passes there are, the two factors are contracted once.
    """

    def __init__(self, part: Product) -> None:
        self._part = part
        self._left: Tensor | None = None

    def add(self, gradients: list[Tensor]) -> None:
        self._left = _plus_square(self._left, self._part.left(gradients[0])[..., 0])

    def result(self) -> Tensor:
        right = self._part.right[..., 0].square()
        return self._left.permute(1, 2, 0) @ right.transpose(0, 1)


class PositionPairs(Reducer):
    """Products at few positions and many passes: (Σ_t g_t ⊗ a_t)² = Σ_{t,u} g_t g_u ⊗ a_t a_u.

    The sums over passes of g_t g_u are kept per sample and pair of positions, and contracted once.
    The pairs can cancel to something much smaller than themselves, hence float64.
    """

    def __init__(self, parts: list[Product]) -> None:
        self._parts = parts
        # For each t the sums of g_t g_u over u ≥ t, (T − t, B, G, O).
        self._left: list[Tensor] = []

    def add(self, gradients: list[Tensor]) -> None:
        left = _joined([p.left(g) for p, g in zip(self._parts, gradients, strict=True)])
        left = _by_position(left)
        if not self._left:
            self._left = [torch.zeros_like(left[t:]) for t in range(len(left))]
        for t, pairs in enumerate(self._left):
            pairs.addcmul_(left[t:], left[t])

    def result(self) -> Tensor:
        right = _by_position(_joined([part.right for part in self._parts]))
        total: Tensor | float = 0.0
        for t, left in enumerate(self._left):
            pairs = right[t:] * right[t]
            pairs[1:] *= 2  # a pair t < u stands for (u, t), too
            total = total + left.flatten(0, 1).permute(1, 2, 0) @ pairs.flatten(0, 1).movedim(1, 0)
        # Rounding can leave a little less than nothing where a gradient vanishes.
        return total.clamp_(min=0)


class SquaredProducts(Reducer):
    """Products at many positions: form each sample's gradient, square and add, in chunks."""

    def __init__(self, parts: list[Product], chunk: int) -> None:
        self._parts = parts
        self._right = _joined([part.right for part in parts])
        self._chunk = chunk
        self._sum: Tensor | None = None

    def add(self, gradients: list[Tensor]) -> None:
        left = _joined([p.left(g) for p, g in zip(self._parts, gradients, strict=True)])
        for start in range(0, len(left), self._chunk):
            rows = slice(start, start + self._chunk)
            products = left[rows] @ self._right[rows].mT
            if self._chunk == 1:  # too large for a core's cache: go through it once
                self._sum = _plus_square(self._sum, products[0])
            else:
                squares = products.square_().sum(0)
                self._sum = squares if self._sum is None else self._sum.add_(squares)

    def result(self) -> Tensor:
        return self._sum


class Transposed(Reducer):
    """Products whose weight is stored as (I, O)."""

    def __init__(self, reducer: Reducer) -> None:
        self._reducer = reducer

    def add(self, gradients: list[Tensor]) -> None:
        self._reducer.add(gradients)

    def result(self) -> Tensor:
        return self._reducer.result().mT


class SquaredDirect(Reducer):
    """Small gradients: add the parts per sample, square, sum over samples once."""

    def __init__(self, parts: list[Direct]) -> None:
        self._parts = parts
        self._squares: Tensor | None = None

    def add(self, gradients: list[Tensor]) -> None:
        total = sum(part.gradient(g) for part, g in zip(self._parts, gradients, strict=True))
        self._squares = _plus_square(self._squares, total)

    def result(self) -> Tensor:
        return self._squares.sum(0)


class SquaredRows(Reducer):
    """Look-ups: add the gradients of one sample that meet in one row, then square."""

    def __init__(self, parts: list[Rows], n_rows: int) -> None:
        self._parts = parts
        ids = torch.cat([part.ids for part in parts], dim=1)
        samples = torch.arange(len(ids), device=ids.device).unsqueeze(1)
        keys, self._slot = (samples * n_rows + ids).flatten().unique(return_inverse=True)
        self._rows = keys % n_rows
        self._n_rows = n_rows
        self._squares: Tensor | None = None

    def add(self, gradients: list[Tensor]) -> None:
        values = torch.cat(
            [part.values(g) for part, g in zip(self._parts, gradients, strict=True)], dim=1
        ).flatten(0, 1)
        met = values.new_zeros(len(self._rows), values.shape[-1])
        self._squares = _plus_square(self._squares, met.index_add_(0, self._slot, values))

    def result(self) -> Tensor:
        table = self._squares.new_zeros(self._n_rows, self._squares.shape[-1])
        return table.index_add_(0, self._rows, self._squares)


class SquaredBroadcast(Reducer):
    """A parameter that is broadcast over the samples once."""

    def __init__(self, part: Broadcast, chunk: int) -> None:
        self._part = part
        self._chunk = chunk
        self._sum: Tensor | float = 0.0

    def add(self, gradients: list[Tensor]) -> None:
        (g,) = gradients
        for start in range(0, len(g), self._chunk):
            gradient = self._part.gradient(g, slice(start, start + self._chunk))
            self._sum = self._sum + gradient.square().sum(0)

    def result(self) -> Tensor:
        return self._sum


class SquaredSums(Reducer):
    """Parts of several kinds (tied weights): add them up densely, in chunks of samples."""

    def __init__(self, parts: list[Part], shape: torch.Size, chunk: int) -> None:
        self._parts = parts
        self._shape = shape
        self._chunk = chunk
        self._sum: Tensor | float = 0.0

    def add(self, gradients: list[Tensor]) -> None:
        prepared = [_prepared(part, g) for part, g in zip(self._parts, gradients, strict=True)]
        batch = len(prepared[0][1])
        for start in range(0, batch, self._chunk):
            chunk = slice(start, min(start + self._chunk, batch))
            size = chunk.stop - chunk.start
            dense = prepared[0][1].new_zeros(size, *self._shape)
            for part, value in prepared:
                _add_dense(dense, part, value, chunk)
            self._sum = self._sum + dense.square_().sum(0)

    def result(self) -> Tensor:
        return self._sum


def _plus_square(sum_: Tensor | None, t: Tensor) -> Tensor:
    return t.square() if sum_ is None else sum_.addcmul_(t, t)


def _positions(parts: list[Product]) -> int:
    return sum(part.right.shape[-1] for part in parts)


def _joined(factors: list[Tensor]) -> Tensor:
    """Return the factors of several uses of a weight as those of one use at more positions."""
    return factors[0] if len(factors) == 1 else torch.cat(factors, dim=-1)


def _by_position(factor: Tensor) -> Tensor:
    """Return (B, G, D, T) as (T, B, G, D) in float64."""
    return factor.movedim(-1, 0).to(torch.float64, memory_format=torch.contiguous_format)


def _prepared(part: Part, g: Tensor) -> tuple[Part, Tensor]:
    if isinstance(part, Product):
        return part, part.left(g)
    return part, part.gradient(g) if isinstance(part, Direct) else part.values(g)


def _add_dense(dense: Tensor, part: Part, value: Tensor, chunk: slice) -> None:
    """Add one part's per-sample gradients to ``dense`` (b, *shape of the parameter)."""
    value = value[chunk]
    if isinstance(part, Product):
        gradient = value @ part.right[chunk].mT
        dense += (gradient.mT if part.transposed else gradient).reshape(dense.shape)
    elif isinstance(part, Direct):
        dense += value
    else:
        samples = torch.arange(len(value), device=value.device).unsqueeze(1)
        dense.index_put_((samples, part.ids[chunk]), value, accumulate=True)


#: Bytes that :class:`PositionPairs` may keep between passes, per sample and for a batch.
PAIRS_LIMIT, PAIRS_LIMIT_OF_A_BATCH = 2**21, 2**26


def pairs_bytes(parts: list[Part], shape: torch.Size) -> int:
    """Return what :class:`PositionPairs` would keep per sample, or 0 where it is out of question.

    It calculates in float64, at which only a CPU is good.
    """
    cpu_products = [isinstance(p, Product) and p.right.device.type == "cpu" for p in parts]
    if not parts or not all(cpu_products):
        return 0
    T, n_outputs = _positions(parts), math.prod(shape) // max(1, parts[0].right.shape[2])
    size = 8 * n_outputs * T * (T + 1) // 2
    return size if T > 1 and size <= PAIRS_LIMIT else 0


def _pairs_are_cheaper(parts: list[Product], shape: torch.Size, passes: int) -> bool:
    """Compare what the two orders take per sample, in nanoseconds as measured on one core.

    Pairs: 4 per pass for each product of two gradients, and at the end for each pair 12 per input
    and 0.4 per weight. Squared products: per pass and weight 1, and 0.2 for each position.
    """
    size = pairs_bytes(parts, shape)
    if not size or size * len(parts[0].right) > PAIRS_LIMIT_OF_A_BATCH:
        return False
    T, weights = _positions(parts), math.prod(shape)
    n_inputs = parts[0].right.shape[1] * parts[0].right.shape[2]
    pairs = passes * 4 * size / 8 + T * (T + 1) / 2 * (12 * n_inputs + 0.4 * weights)
    return pairs < passes * weights * (1 + 0.2 * T)


def make_reducer(parts: list[Part], shape: torch.Size, passes: int, budget: int) -> Reducer:
    """Return the cheapest reducer for a parameter.

    Args:
        parts: one for each use of the parameter.
        shape: of the parameter.
        passes: how many backward passes there will be.
        budget: elements that may be held at a time for gradients of single samples.
    """
    chunk = max(1, budget // max(1, math.prod(shape)))
    if all(isinstance(part, Product) for part in parts) and any(p.transposed for p in parts):
        if all(part.transposed for part in parts):
            plain = [Product(part.right, part.left) for part in parts]
            return Transposed(make_reducer(plain, shape, passes, budget))
        return SquaredSums(parts, shape, chunk)
    if all(isinstance(part, Product) for part in parts):
        if _positions(parts) == 1:
            return SquaredFactors(parts[0])
        if _pairs_are_cheaper(parts, shape, passes):
            return PositionPairs(parts)
        return SquaredProducts(parts, chunk)
    if isinstance(parts[0], Broadcast):
        return SquaredBroadcast(parts[0], chunk)
    if all(isinstance(part, Direct) for part in parts):
        return SquaredDirect(parts)
    if all(isinstance(part, Rows) for part in parts):
        return SquaredRows(parts, shape[0])
    return SquaredSums(parts, shape, chunk)
