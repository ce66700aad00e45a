"""Networks: shapes, seeds, and clear errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ewc_tutorial.course.models import mlp, small_cnn


def test_mlp_has_the_layers_asked_for():
    model = mlp(64, [30, 20], 10, activation=nn.Tanh, dropout=0.5)
    assert [tuple(p.shape) for p in model.parameters()] == [
        (30, 64), (30,), (20, 30), (20,), (10, 20), (10,),
    ]  # fmt: skip
    assert sum(isinstance(m, nn.Tanh) for m in model) == 2
    assert sum(isinstance(m, nn.Dropout) for m in model) == 2
    assert model(torch.zeros(5, 64)).shape == (5, 10)
    assert len(mlp(64, [], 10)) == 1


@pytest.mark.parametrize("size", [8, 28])
def test_cnn_maps_images_to_logits(size):
    assert small_cnn(1, 10, image_size=size)(torch.zeros(3, 1, size, size)).shape == (3, 10)


@pytest.mark.parametrize(
    "build", [lambda seed: mlp(4, [3], 2, seed=seed), lambda seed: small_cnn(seed=seed)]
)
def test_the_seed_fixes_the_weights_and_leaves_the_global_state(build):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = build(0), build(0), build(1)
    assert torch.equal(before, torch.get_rng_state())
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mlp(0, [3], 2), "in_features must be a positive whole number, not 0"),
        (lambda: mlp(4, [3, -1], 2), "hidden must be a positive whole number, not -1"),
        (lambda: small_cnn(image_size=3), "image_size must be at least 4 for 2 stages, not 3"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
