"""The stream of notebook 06 that hides its boundaries is the one that others are told of."""

from __future__ import annotations

import torch

from ewc_tutorial.course import permuted_tasks
from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.training import train
from experiments import stream_without_boundaries as blind


def test_it_brings_the_batches_of_ordinary_training():
    """A network that is trained on the stream by hand is the one that `train` makes."""
    tasks = permuted_tasks(2, seed=0)
    by_hand, ordinary = PROTOCOL.model(tasks, seed=0), PROTOCOL.model(tasks, seed=0)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    stream = list(blind.stream(tasks, seed=3))
    assert len(stream) == 2 * blind.STEPS
    for x, y in stream:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(by_hand(x), y).backward()
        optimizer.step()
    order = torch.Generator().manual_seed(3)
    for task in tasks:
        train(ordinary, task, epochs=PROTOCOL.epochs, lr=0.1, generator=order)
    for mine, theirs in zip(by_hand.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
