"""Exercises of notebook 09, A language model that forgets."""

from __future__ import annotations

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _sequences(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return logits and labels; the later ones have tokens that do not count."""
    g = torch.Generator().manual_seed(seed)
    cases = []
    for T, V, ignored in ((5, 4, []), (6, 3, [0, 1, 2]), (7, 5, [5, 6])):
        labels = torch.randint(V, (T,), generator=g)
        # A token that repeats would hide a shift.
        labels[1:] = (labels[:-1].cumsum(0) + 1 + labels[1:]) % V
        labels[ignored] = -100
        cases.append((2 * torch.randn(T, V, generator=g, dtype=torch.float64), labels))
    return cases


def _log_probs(logits: Tensor, labels: Tensor, shift: int = 1) -> Tensor:
    """Return the terms of a log-probability whose logits are ``shift`` places before the labels."""
    log_p, T = logits.log_softmax(1), len(labels)
    places = [t for t in range(T) if 0 <= t + shift < T]
    terms = [log_p[t, labels[t + shift]] for t in places if labels[t + shift] >= 0]
    return torch.stack(terms)


def _unnormalised(logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels[1:] != -100
    return logits[:-1][kept].gather(1, labels[1:][kept, None]).sum()


def _as_token_zero(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[:-1].log_softmax(1).gather(1, labels[1:, None].clamp(min=0)).sum()


def _gradients(seed: int = 0) -> list[tuple[list[Tensor]]]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((3, 5), (2, 4, 6), (1, 7, 2, 3))
    return [([torch.randn(T, 4, generator=g) for T in lengths],) for lengths in shapes]


def _factors(seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """Return G, A, B, s: a fresh adapter, a used one, and one whose shapes tell nothing."""
    g = torch.Generator().manual_seed(seed)
    cases = []
    for out, r, inputs, fresh in ((4, 2, 3, True), (5, 2, 3, False), (3, 3, 3, False)):
        G, A = torch.randn(out, inputs, generator=g), torch.randn(r, inputs, generator=g)
        B = torch.zeros(out, r) if fresh else torch.randn(out, r, generator=g)
        cases.append((G, A, B, 0.5 + out))
    return cases


EXERCISES: dict[str, Exercise] = {
    "sequence_log_prob": Exercise(
        answer=reference.sequence_log_prob,
        cases=_sequences,
        mistakes={
            "You compare the logits at place t with the token at place t, which the model has "
            "already read there. They are about the next token: labels[t + 1].": (
                lambda logits, labels: _log_probs(logits, labels, shift=0).sum()
            ),
            "You have shifted in the wrong direction: the logits at place t are compared with the "
            "token before it. They are about the next one.": (
                lambda logits, labels: _log_probs(logits, labels, shift=-1).sum()
            ),
            "That is the mean over the tokens. The log-probability of a sequence is the sum.": (
                lambda logits, labels: _log_probs(logits, labels).mean()
            ),
            "You divide by the length. The log-probability of a sequence is the sum.": (
                lambda logits, labels: _log_probs(logits, labels).sum() / len(labels)
            ),
            "Tokens with the label −100 are counted, as if they were token 0. They must not "
            "count.": _as_token_zero,
            "The sign: a log-probability is negative, its negative is the loss.": (
                lambda logits, labels: -_log_probs(logits, labels).sum()
            ),
            "Those are the logits of the right tokens. Take log_softmax first.": _unnormalised,
        },
    ),
    "fisher_of_sequences": Exercise(
        answer=reference.fisher_of_sequences,
        cases=_gradients,
        mistakes={
            "You square the *mean* over a sequence's tokens, as loss.backward() gives it. That is "
            "smaller by the square of the length. The score of a sequence is the sum.": (
                lambda g: torch.stack([x.mean(0) ** 2 for x in g]).mean(0)
            ),
            "You take each token for a sample and average over all tokens. One sample is one "
            "sequence, and its score is the *sum* over its tokens. (For tokens drawn from the "
            "model their scores are uncorrelated, so on average the squares of a sequence's tokens "
            "*add up* to its F: T times what their mean says.)": (
                lambda g: (torch.cat(g) ** 2).mean(0)
            ),
            "You square each token's gradient, then add. For tokens drawn from the model that is "
            "the same in expectation, since their scores are uncorrelated. For these tokens it is "
            "not the same number: the sample is the sequence. Add first, then square.": lambda g: (
                torch.stack([(x**2).sum(0) for x in g]).mean(0)
            ),
            "You average over all tokens of all sequences before squaring: one batch mean of token "
            "means, as the published program does.": lambda g: torch.cat(g).mean(0) ** 2,
            "You add up all sequences before squaring. Each sequence is squared on its own.": (
                lambda g: torch.cat(g).sum(0) ** 2 / len(g)
            ),
            "You divide by the number of tokens. The mean is over sequences.": (
                lambda g: torch.stack([x.sum(0) ** 2 for x in g]).sum(0) / sum(map(len, g))
            ),
            "The mean over the sequences is missing: that is their sum.": (
                lambda g: torch.stack([x.sum(0) ** 2 for x in g]).sum(0)
            ),
        },
    ),
    "lora_gradients": Exercise(
        answer=reference.lora_gradients,
        cases=_factors,
        mistakes={
            "The factor s is missing in both: the weight is W + s·BA.": (
                lambda G, A, B, s: (B.T @ G, G @ A.T)
            ),
            "The two are exchanged: the gradient by A comes first.": (
                lambda G, A, B, s: (s * G @ A.T, s * B.T @ G)
            ),
            "The sign: those are the steps of gradient descent, not the gradients.": (
                lambda G, A, B, s: (-s * B.T @ G, -s * G @ A.T)
            ),
            "s is missing in the gradient by A: both matrices come in through s·BA.": (
                lambda G, A, B, s: (B.T @ G, s * G @ A.T)
            ),
            "s is missing in the gradient by B: both matrices come in through s·BA.": (
                lambda G, A, B, s: (s * B.T @ G, G @ A.T)
            ),
            "The factor s occurs once in each gradient, not twice.": lambda G, A, B, s: (
                s**2 * B.T @ G,
                s**2 * G @ A.T,
            ),
        },
    ),
}
