"""Exercises of notebook 07, Three scenarios."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _masks(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return logits with masks of one, two, three and all classes; some logits are large."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, classes: int) -> Tensor:
        return 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)

    masks = ([0, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1], [0, 0, 1, 0])
    active = [torch.tensor(mask, dtype=torch.bool) for mask in masks]
    return [(draw(4, len(mask)), mask) for mask in active]


def _answers(seed: int = 0) -> list[tuple[Tensor, Tensor, int]]:
    """Return logits and labels of tasks of two and of three classes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, classes: int, per_task: int) -> tuple[Tensor, Tensor, int]:
        y = torch.randint(classes, (n,), generator=generator)
        logits = torch.randn(n, classes, generator=generator)
        logits[torch.arange(n), y] += 1.5
        return logits, y, per_task

    return [draw(40, 10, 2), draw(50, 6, 3), draw(30, 6, 2)]


def _heads(seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return weights, Fisher information and fresh rows of heads."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for classes, features, new in ((2, 3, 2), (4, 5, 2), (3, 2, 1)):
        weight = torch.randn(classes, features, generator=generator)
        fisher = torch.rand(classes, features, generator=generator)
        cases.append((weight, fisher, torch.randn(new, features, generator=generator)))
    return cases


def _three(
    task_logits: str, domain_logits: str | None = None, swap: bool = False
) -> Callable[..., tuple[float, float, float]]:
    """Return a wrong ``three_accuracies`` whose logits for two of the questions are others."""

    def wrong(logits: Tensor, y: Tensor, k: int) -> tuple[float, float, float]:
        task, domain, every = reference.three_accuracies(logits, y, k)
        own = (torch.arange(logits.shape[1]) // k) == (y // k)[:, None]
        inside = logits.masked_fill(~own, -torch.inf).argmax(1)
        if task_logits == "answered":
            task = ((logits.argmax(1) // k) == (y // k)).double().mean().item()
        elif task_logits == "first":
            task = (logits[:, :k].argmax(1) == y % k).double().mean().item()
        if domain_logits == "masked":
            domain = (inside % k == y % k).double().mean().item()
        elif domain_logits == "task":
            domain = (logits.argmax(1) // k == y // k).double().mean().item()
        elif domain_logits == "summed":
            places = logits.reshape(len(y), -1, k).sum(1)
            domain = (places.argmax(1) == y % k).double().mean().item()
        return (every, domain, task) if swap else (task, domain, every)

    return wrong


Tasks = list[tuple[int, ...]]
Plan = list[tuple[list[int], list[int], list[int]]]


def _applications(seed: int = 0) -> list[tuple[Tasks, bool]]:
    """Return tasks of each scenario, and some in which a class comes again, told and not told."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n_tasks: int) -> Tasks:
        """Return tasks of two to four classes, none of which comes again."""
        sizes = torch.randint(2, 5, (n_tasks,), generator=generator).tolist()
        classes = torch.randperm(30, generator=generator).tolist()
        return [tuple(classes.pop() for _ in range(size)) for size in sizes]

    def again() -> Tasks:
        """Return four tasks; the last but one begins with the last class of one before it."""
        tasks = draw(4)
        earlier = tasks[int(torch.randint(2, (), generator=generator))]
        return [*tasks[:2], (earlier[-1], *tasks[2]), tasks[3]]

    return [
        (draw(3), True),
        (draw(1) * 3, False),
        (draw(3), False),
        (again(), True),
        (again(), False),
    ]


def _plan(
    row: Callable[[int, list[int], Tasks], int] | None = None,
    competing: Callable[[list[int], list[int], int], list[int]] | None = None,
    held: Callable[[list[int], list[int], list[int]], list[int]] | None = None,
    told_is: bool | None = None,
) -> Callable[[Tasks, bool], Plan]:
    """Return a design with other rows, other competitors or other springs than the right ones."""

    def design(tasks: Tasks, told: bool) -> Plan:
        told = told if told_is is None else told_is
        plan, everything = [], len({label for classes in tasks for label in classes})
        seen: list[int] = []  # the class of each row
        for classes in tasks:
            before = list(range(len(seen)))
            if row is None:
                seen += [label for label in classes if label not in seen]
                rows = [seen.index(label) for label in classes]
            else:
                rows = [row(place, seen, tasks) for place in range(len(classes))]
                seen += [-1] * (1 + max(rows) - len(seen))
            at_stake = sorted(rows) if told else list(range(len(seen)))
            if competing is not None and not told:
                at_stake = competing(rows, at_stake, everything)
            springs = [r for r in before if r in at_stake]
            plan.append((rows, at_stake, springs if held is None else held(before, at_stake, rows)))
        return plan

    return design


EXERCISES: dict[str, Exercise] = {
    "masked_log_probs": Exercise(
        answer=reference.masked_log_probs,
        cases=_masks,
        mistakes={
            "The softmax runs over all classes, and you pick the active ones afterwards: what is "
            "left does not sum to one. Pick first, then normalise.": (
                lambda logits, active: logits.log_softmax(1)[:, active]
            ),
            "Multiplying by the mask makes the other logits zero, not absent: exp(0) = 1 still "
            "takes its share of the probability.": (
                lambda logits, active: (logits * active).log_softmax(1)[:, active]
            ),
            "Those are the probabilities. Return their logarithm.": (
                lambda logits, active: logits[:, active].softmax(1)
            ),
            "The normalisation is missing: subtract the logarithm of the sum of exponentials.": (
                lambda logits, active: logits[:, active]
            ),
            "That normalises over the samples. Each sample's probabilities sum to one: dimension "
            "1.": lambda logits, active: logits[:, active].log_softmax(0),
        },
    ),
    "three_accuracies": Exercise(
        answer=reference.three_accuracies,
        cases=_answers,
        mistakes={
            "The first number says how often the *task* is recognised. Task-incremental means "
            "that the task is given: compare only the logits of the sample's own task.": (
                _three("answered")
            ),
            "You take the first task's logits for every sample. Each sample has its own task: "
            "label // per_task.": _three("first"),
            "Your second number uses the task of the sample, so it is the first number again. In "
            "the domain-incremental scenario the task is not known: take the largest of all "
            "logits, and then its place within its task.": _three("", "masked"),
            "Your second number says how often the task is right. The question is the place "
            "within the task: label % per_task.": _three("", "task"),
            "Your second number adds up the logits of each place over the tasks. Only the largest "
            "of all logits counts: find its class, then the place of that class.": (
                _three("", "summed")
            ),
            "The order is turned round: task, domain, class.": _three("", swap=True),
        },
    ),
    "grow_head": Exercise(
        answer=reference.grow_head,
        cases=_heads,
        mistakes={
            "The new rows come first, so every old class has got a new number. Put them below.": (
                lambda weight, fisher, fresh: (
                    torch.cat([fresh, weight]),
                    torch.cat([torch.zeros_like(fresh), fisher]),
                )
            ),
            "The new rows have a spring of stiffness one: that holds them at their random first "
            "values. No earlier task has used them: zero.": (
                lambda weight, fisher, fresh: (
                    torch.cat([weight, fresh]),
                    torch.cat([fisher, torch.ones_like(fresh)]),
                )
            ),
            "The new rows have got the mean Fisher information of the old ones. No earlier task "
            "has used them: zero.": (
                lambda weight, fisher, fresh: (
                    torch.cat([weight, fresh]),
                    torch.cat([fisher, fisher.mean(0).expand_as(fresh)]),
                )
            ),
            "The Fisher information of the old rows is gone, so nothing protects the old classes. "
            "Only the new rows get zeros.": (
                lambda weight, fisher, fresh: (
                    torch.cat([weight, fresh]),
                    torch.zeros(len(weight) + len(fresh), weight.shape[1]),
                )
            ),
            "The head is grown, but its Fisher information is not: the two no longer fit.": (
                lambda weight, fisher, fresh: (torch.cat([weight, fresh]), fisher)
            ),
            "The old rows of the head are lost: a new layer must take over the old values.": (
                lambda weight, fisher, fresh: (
                    torch.cat([torch.zeros_like(weight), fresh]),
                    torch.cat([fisher, torch.zeros_like(fresh)]),
                )
            ),
        },
    ),
    "design_head": Exercise(
        answer=reference.design_head,
        cases=_applications,
        mistakes={
            "A class that comes again gets a second row. It has one already, which knows "
            "something about it.": _plan(row=lambda place, seen, tasks: len(seen) + place),
            "Your rows are the places within a task, so classes of different tasks share a row. "
            "That is right only where all tasks ask for the same answers.": _plan(
                row=lambda place, seen, tasks: place
            ),
            "You never use `told`: without being told, all classes seen so far compete.": _plan(
                told_is=True
            ),
            "You never use `told`: who is told the task asks its own classes only.": _plan(
                told_is=False
            ),
            "Rows of classes still to come compete. Nothing has taught them when to be silent: "
            "let the head grow.": _plan(
                competing=lambda rows, at_stake, everything: list(range(everything))
            ),
            "Springs hold rows that do not compete. No loss pulls at those: they cost memory and "
            "do nothing.": _plan(held=lambda before, at_stake, rows: before),
            "Springs hold new rows, too. Nothing is known there that could be lost.": _plan(
                held=lambda before, at_stake, rows: at_stake
            ),
            "No row has a spring. A row that an earlier task has used and that competes again "
            "will be moved.": _plan(held=lambda before, at_stake, rows: []),
            "Springs hold only the rows of the task's own classes. Where all classes compete, the "
            "others are pushed, too: down, on every image.": _plan(
                held=lambda before, at_stake, rows: [r for r in before if r in rows]
            ),
        },
    ),
}
