"""The textbook functions of notebook 09 against PyTorch's loss, autograd and loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from ewc_tutorial.course import check, reference
from ewc_tutorial.course.exercises import language

#: How often a reduction divides by what it goes over.
SHRINKS = {"sum": 0, "mean": 1}


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("ignored", [[], [0, 1], [3], [4, 5], [0, 1, 2, 3, 4, 5]])
def test_a_sequences_log_probability_is_the_negative_of_the_usual_shifted_loss(ignored):
    logits = 2 * draw(6, 5, seed=0)
    labels = torch.tensor([1, 4, 0, 2, 2, 3])
    labels[ignored] = -100
    loss = functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
    found = reference.sequence_log_prob(logits, labels)
    assert found.item() == pytest.approx(-loss.item(), abs=1e-12)


def test_a_sequence_is_one_sample_of_the_fisher_information():
    gradients = [draw(T, 3, seed=T) for T in (1, 4, 2)]
    expected = []
    for i in range(3):
        scores = [math.fsum(row[i] for row in tokens.tolist()) for tokens in gradients]
        expected.append(math.fsum(s * s for s in scores) / 3)
    assert reference.fisher_of_sequences(gradients).tolist() == pytest.approx(expected)


def test_lora_gradients_are_those_of_autograd():
    W, A, B = draw(4, 3, seed=1), draw(2, 3, seed=2), draw(4, 2, seed=3)
    x, s = draw(5, 3, seed=4), 1.7
    for tensor in (W, A, B):
        tensor.requires_grad_()
    loss = torch.tanh(x @ (W + s * B @ A).T).square().sum()
    G, by_A, by_B = torch.autograd.grad(loss, (W, A, B))
    found = reference.lora_gradients(G, A.detach(), B.detach(), s)
    torch.testing.assert_close(found, (by_A, by_B))


@pytest.mark.parametrize(("tokens", "batch"), [(t, b) for t in SHRINKS for b in SHRINKS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("divisor", ["batches", "sequences", "nothing"])
def test_the_lambda_of_a_program_is_the_one_by_counting(tokens, batch, weighted, divisor):
    """N sequences of T tokens in batches of b: a sum of b scores has b times the square of one."""
    N, T, b, lam = 60, 7, 4, 5000.0
    F_by_theirs = b / b ** (2 * SHRINKS[batch]) / T ** (2 * SHRINKS[tokens])  # of one batch
    F_by_theirs *= b if weighted else 1
    F_by_theirs *= {"batches": 1, "sequences": 1 / b, "nothing": N / b}[divisor]
    program = language.program(tokens, batch, weighted, divisor)
    found = reference.lambda_of_a_program(program, lam, N, T, b)
    assert found == pytest.approx(lam * F_by_theirs, rel=0.05)


def test_a_program_is_the_loop_that_it_describes():
    gradients = [draw(T, 2, seed=T).float() for T in (2, 3, 1)]
    own = [g.sum(0) / len(g) for g in gradients]
    first, last = (own[0] + own[1]) / 2, own[2]
    expected = (2 * first**2 + last**2) / 3  # as Concept-1K does it; the last batch is smaller
    found = language.program("mean", "mean", True, "sequences")(gradients, 2)
    torch.testing.assert_close(found, expected)


def test_gradients_that_are_all_positive_are_named():
    def positive(program, lam, N, T, b):
        scores = [torch.rand(T, 500) for _ in range(N)]
        return lam * program(scores, b).sum() / reference.fisher_of_sequences(scores).sum()

    assert "or gradients that are all positive" in check("lambda_of_a_program", positive).text
