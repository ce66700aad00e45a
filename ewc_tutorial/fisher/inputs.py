"""All that the engine does with a model's inputs: a tensor, or a mapping of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

#: One row for each sample, in one tensor or in each of several.
Inputs = Tensor | Mapping[str, Tensor]


def apply(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Return the inputs with each tensor replaced by what ``function`` makes of it."""
    return function(x) if isinstance(x, Tensor) else {k: function(v) for k, v in x.items()}


def tensors(x: Inputs) -> list[Tensor]:
    """Return all tensors of the inputs."""
    return [x] if isinstance(x, Tensor) else list(x.values())


def n_samples(x: Inputs) -> int:
    """Return the number of samples."""
    return len(tensors(x)[0])


def take(x: Inputs, rows: slice | list[int]) -> Inputs:
    """Return some of the samples."""
    return apply(lambda t: t[rows], x)


def one_by_one(x: Inputs) -> Iterator[Inputs]:
    """Yield batches of one sample."""
    for i in range(n_samples(x)):
        yield take(x, slice(i, i + 1))


def all_equal(x: Inputs) -> bool:
    """Return whether all samples are the same."""
    return all(bool((t == t[:1]).all()) for t in tensors(x))
