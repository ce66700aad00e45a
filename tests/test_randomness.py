"""One rule for random numbers: what draws takes a generator, a whole number or None, which is 0."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ewc_tutorial import EWC, fisher_diagonal
from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.scenarios import MovingFisher
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.course.training import batches, train
from ewc_tutorial.huggingface import sequence_fisher

(TASK,) = permuted_tasks(1, n_train=70, n_test=10)


def network() -> nn.Sequential:
    return mlp(64, [4], 10, seed=0)


def labels(generator: Any) -> Tensor:
    return fisher_diagonal(network(), TASK, "sampled", 20, generator=generator)["0.weight"]


def consolidated(generator: Any) -> Tensor:
    ewc = EWC(network())
    ewc.consolidate(TASK, "sampled", n_samples=20, generator=generator)
    return ewc.importance["0.weight"]


def order(generator: Any) -> Tensor:
    return torch.cat(list(islice(batches(70, 20, generator), 3)))


def losses(generator: Any) -> Tensor:
    return train(network(), TASK, steps=3, generator=generator)


def moving(generator: Any) -> Tensor:
    fisher = MovingFisher(network(), TASK, generator=generator)
    fisher(1)
    return fisher.mean()["0.weight"]


def sequences(generator: Any) -> Tensor:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=7, n_embd=4, n_layer=1, n_head=1, n_positions=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": torch.tensor([1, 2, 3])}, {"input_ids": torch.tensor([4, 5, 6])}]
    found = sequence_fisher(model, data, "sampled", generator=generator)
    return torch.cat([F.flatten() for F in found.values()])


@pytest.mark.parametrize("draw", [labels, consolidated, order, losses, moving, sequences])
def test_a_number_is_a_new_generator_and_none_is_zero(draw: Callable[[Any], Tensor]):
    state = torch.get_rng_state()
    zero = draw(torch.Generator().manual_seed(0))
    assert torch.equal(draw(0), zero)
    assert torch.equal(draw(None), zero)
    assert torch.equal(draw(np.int64(5)), draw(torch.Generator().manual_seed(5)))
    assert not torch.equal(draw(5), zero)
    ahead = torch.Generator().manual_seed(0)
    draw(ahead)
    assert not torch.equal(draw(ahead), zero)
    assert torch.equal(torch.get_rng_state(), state)
    for wrong in ("0", 0.5):
        with pytest.raises(TypeError, match="generator must be .* not (str|float)"):
            draw(wrong)
