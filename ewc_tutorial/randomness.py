"""Where random numbers come from, in the library and in the course.

* What *draws* takes ``generator``. A ``torch.Generator`` goes on from where it stands, so two calls
  draw different numbers; a whole number seeds a new one, and ``None`` is the number 0, so two equal
  calls draw the same.
* What makes a *whole run*, be it weights, tasks, or batches and labels, takes ``seed``, a whole
  number, and makes a generator of it for each purpose: how much one purpose draws must not change
  what another one gets.

PyTorch's global random state is neither used nor changed by either.
"""

from __future__ import annotations

import operator

import torch

DEFAULT_SEED = 0


def as_generator(generator: torch.Generator | int | None) -> torch.Generator:
    """Return the generator that an argument ``generator`` means.

    Raises:
        TypeError: it is neither a generator nor a whole number nor ``None``.
    """
    if isinstance(generator, torch.Generator):
        return generator
    try:
        seed = DEFAULT_SEED if generator is None else operator.index(generator)
    except TypeError:
        raise TypeError(
            "generator must be a torch.Generator, a whole number or None, "
            f"not {type(generator).__name__}."
        ) from None
    return torch.Generator().manual_seed(seed)
