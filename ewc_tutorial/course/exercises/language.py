"""Exercises of notebook 09, A language model that forgets."""

from __future__ import annotations

import random
from collections.abc import Callable

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


#: Takes the gradients ``(T, P)`` of each sequence's tokens and a batch size to some F ``(P,)``.
Program = Callable[[list[Tensor], int], Tensor]


def program(tokens: str, batch: str, weighted: bool, divisor: str) -> Program:
    """Return a program that squares the gradients of batches, as many do.

    Args:
        tokens, batch: ``"sum"`` or ``"mean"``: how its loss goes over the tokens of a sequence, and
            over the sequences of a batch.
        weighted: whether each square is multiplied by the size of its batch.
        divisor: what the sum of the squares is divided by: the number of ``"batches"`` or of
            ``"sequences"``, or ``"nothing"``.
    """

    def fisher(token_gradients: list[Tensor], batch_size: int) -> Tensor:
        total, batches = torch.zeros(token_gradients[0].shape[1]), 0
        for start in range(0, len(token_gradients), batch_size):
            own = [getattr(g, tokens)(0) for g in token_gradients[start : start + batch_size]]
            gradient = getattr(torch.stack(own), batch)(0)
            total, batches = total + gradient**2 * (len(own) if weighted else 1), batches + 1
        return total / {"batches": batches, "sequences": len(token_gradients)}.get(divisor, 1)

    return fisher


def _programs(seed: int = 0) -> list[tuple[Program, float, int, int, int]]:
    """Return the program of Concept-1K, one that divides by nothing, and two others."""
    r = random.Random(seed)
    choices = [("mean", "mean", True, "sequences"), ("sum", "mean", False, "nothing")]
    drawn = [(t, b, w, d) for t in ("sum", "mean") for b in ("sum", "mean")
             for w in (False, True) for d in ("batches", "sequences")]  # fmt: skip
    choices += r.sample([choice for choice in drawn if choice not in choices], 2)
    cases = []
    for choice in choices:
        b = r.choice((3, 4, 6))
        cases.append((program(*choice), 10 ** r.uniform(-1, 4), b * r.randint(8, 20),
                      r.randint(5, 9), b))  # fmt: skip
    return r.sample(cases, len(cases))


def _measured(
    draw: Callable[[int, int, int, torch.Generator], list[Tensor]] | None = None,
    ours: Callable[[list[Tensor]], Tensor] = reference.fisher_of_sequences,
    n: int = 0,
    T: int = 0,
    b: int = 0,
    power: int = 1,
) -> Callable[..., float]:
    """Return an experiment with other gradients, another F, or other numbers than the case's."""

    def experiment(theirs: Program, lam: float, N: int, length: int, batch_size: int) -> float:
        generator = torch.Generator().manual_seed(1)
        numbers = n or N, T or length, 1000, generator
        scores = (draw or _independent)(*numbers)
        ratio = theirs(scores, b or batch_size).sum() / ours(scores).sum()
        return float(lam * ratio**power)

    return experiment


def _independent(n: int, T: int, P: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(T, P, generator=generator) for _ in range(n)]


def _copies(n: int, T: int, P: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(T, P, generator=generator)] * n


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
    "lambda_of_a_program": Exercise(
        answer=reference.lambda_of_a_program,
        cases=_programs,
        rtol=0.1,  # an experiment has noise
        mistakes={
            "The wrong way round: the springs λF are to be equal, so a program whose F is smaller "
            "has the larger λ. Ours is λ times their F / our F.": _measured(power=-1),
            "The factor is squared. λF must be the same, and F enters once.": _measured(power=2),
            "In your batches something adds up that should cancel: sequences with the same "
            "gradients, or gradients that are all positive. Draw each sequence on its own, with "
            "mean zero: `torch.randn`.": _measured(_copies),
            "You ran the program with batches of one. Its F depends on the batch size.": _measured(
                b=1
            ),
            "Your sequences have one token. A program that takes their mean shrinks F with the "
            "square of the length: take sequences of the given one.": _measured(T=1),
            "You gave the program one batch alone. One that sums over the data needs as many "
            "sequences as there are.": lambda theirs, lam, N, length, b: _measured(n=b)(
                theirs, lam, N, length, b
            ),
            "For our F you took each token for a sample. It is T times larger: one sample is one "
            "sequence.": _measured(ours=lambda scores: (torch.cat(scores) ** 2).mean(0)),
            "That is λ itself, as if their F were ours.": lambda theirs, lam, N, length, b: lam,
        },
    ),
}
