"""Numbers ≥ 0 in one byte each: 5 bits of exponent, 3 of mantissa, and a scale for all of a tensor.

A byte c stands for scale · h, h being the float16 whose bits after the sign begin with c. That is a
logarithmic scale of eight steps per octave over 28 octaves below the largest number, then seven
even steps down to zero, which is exact. The scale is a power of two, so that numbers once rounded
are not rounded again when the scale changes, but for the smallest.

Rounding is at random, up with the probability that makes the expectation the number itself. What is
rounded again and again in a sum of many tasks then stays right in the mean, where rounding to the
nearest would drop whatever is less than half a step of what is there already, each time anew.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: |rounded − x| < RELATIVE · x, or less than SMALLEST times the largest number.
RELATIVE, SMALLEST = 2.0**-3, 2.0**-31
#: The largest number has this exponent in float16, one below its own largest: it may be rounded up.
_TOP = 14
#: Bits of float32's mantissa that are rounded away, and the distance of both exponents' biases.
_DROPPED, _BIAS = 20, (127 - 15) << 3
#: Below float16's smallest normal number steps are even.
_NORMAL, _EVEN = 2.0**-14, 2.0**-17


def scale_for(largest: float) -> float:
    """Return the scale of numbers of which this is the largest."""
    exponent = math.frexp(largest)[1] - 1 - _TOP if largest else 0
    return 2.0 ** max(exponent, -126)  # a normal float32 at least


def rounded(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return the bytes of finite numbers ≥ 0.

    Args:
        x: of any shape, float32.
        scale: of :func:`scale_for`.
        generator: on the CPU, so that all devices draw the same.
    """
    x = x / scale
    noise = torch.randint(1 << _DROPPED, x.shape, generator=generator, dtype=torch.int32)
    noise = noise.to(x.device)
    codes = ((x.view(torch.int32) + noise) >> _DROPPED) - _BIAS
    even = (x / _EVEN + noise * 2.0**-_DROPPED).floor()
    return torch.where(x < _NORMAL, even, codes).to(torch.uint8)


def numbers(codes: Tensor, scale: float) -> Tensor:
    """Return the numbers, in float32, that bytes stand for."""
    halves = codes.to(torch.int16).bitwise_left_shift_(7).view(torch.float16)
    return halves.to(torch.float32).mul_(scale)
