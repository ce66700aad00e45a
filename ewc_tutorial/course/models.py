"""The small networks of the course.

Every builder takes a ``seed`` and leaves PyTorch's global random state as it found it, so that a
network's initial weights depend on nothing but the call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from ``seed`` inside the block and restore the global state after it."""
    with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        yield


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive whole number, not {size!r}.")


def mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    seed: int | None = None,
) -> nn.Sequential:
    """Build a fully connected network on inputs ``(N, in_features)``.

    Args:
        in_features: size of one flattened input.
        hidden: width of each hidden layer, from input to output; ``[]`` gives softmax regression.
        out_features: number of logits.
        activation: builds the non-linearity after each hidden layer.
        dropout: probability of dropping a hidden unit in training; 0 adds no dropout layer.
        seed: of the initial weights; ``None`` uses PyTorch's global random state.

    Raises:
        ValueError: a size is not a positive whole number.
    """
    _positive(in_features=in_features, out_features=out_features)
    widths = [in_features, *hidden]
    with _seeded(seed):
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            _positive(hidden=fan_out)
            layers += [nn.Linear(fan_in, fan_out), activation()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers, nn.Linear(widths[-1], out_features))


def small_cnn(
    in_channels: int = 1,
    out_features: int = 10,
    channels: Sequence[int] = (16, 32),
    image_size: int = 8,
    seed: int | None = None,
) -> nn.Sequential:
    """Build a convolutional network on inputs ``(N, in_channels, image_size, image_size)``.

    Each stage is a 3×3 convolution, ReLU and 2×2 max-pooling; one linear layer gives the logits.

    Raises:
        ValueError: a size is not a positive whole number, or the image is too small to be halved
            once per stage.
    """
    _positive(in_channels=in_channels, out_features=out_features, image_size=image_size)
    final_size = image_size >> len(channels)
    if final_size < 1:
        raise ValueError(
            f"image_size must be at least {2 ** len(channels)} for {len(channels)} stages, "
            f"not {image_size}."
        )
    depths = [in_channels, *channels]
    with _seeded(seed):
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(depths):
            _positive(channels=fan_out)
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(depths[-1] * final_size**2, out_features)
        )
