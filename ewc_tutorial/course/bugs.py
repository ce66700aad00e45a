"""Mistakes that public EWC code really makes, each as a small function of our own writing.

None of them raises an error. Each function does one thing wrong and everything else right, so that
it can be held against the right one, which stands first in its section. :data:`BUGS` lists them
with what one sees (``symptom``) and what to do (``fix``); ``tests/test_bugs.py`` has for each the
test that would have caught it.

A ``loader`` is a list of batches ``(x, y)``; a Fisher diagonal or an anchor is a dict with one
tensor per parameter name.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Bug:
    """One mistake.

    Attributes:
        name: what it is called.
        group: ``"F"``, ``"anchor"``, ``"bookkeeping"`` or ``"units"``.
        wrong: the function that makes it.
        right: the function that does the same without it.
        symptom: what one sees.
        fix: what to do.
    """

    name: str
    group: str
    wrong: Callable[..., Any]
    right: Callable[..., Any]
    symptom: str
    fix: str


def open_case(name: str) -> Any:
    """Show what a mistake is, folded: its name, its source and what to do instead.

    Raises:
        KeyError: the gallery has no mistake of that name.
    """
    from IPython.display import HTML

    bug = BUGS[name]
    source = inspect.getsource(bug.wrong)
    return HTML(
        f"<details><summary>Open the case</summary><p><b>{html.escape(bug.name)}</b></p>"
        f"<pre>{html.escape(source)}</pre><p>Instead: {html.escape(bug.fix)}.</p></details>"
    )


# --- Wrong F ----------------------------------------------------------------------------------


def gradients(model: nn.Module, loss: Tensor) -> Tensors:
    """Return the gradient of ``loss`` by parameter name."""
    found = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def zeros(model: nn.Module) -> Tensors:
    """Return a zero for each parameter, by name."""
    return {name: torch.zeros_like(p) for name, p in model.named_parameters()}


def mean_of_squares(model: nn.Module, loader: Iterable[Batch]) -> Tensors:
    """Right: the squared gradient of every single sample, averaged over the samples."""
    model.eval()
    fisher, n = zeros(model), 0
    for x, y in loader:
        for i in range(len(x)):
            loss = functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            for name, g in gradients(model, loss).items():
                fisher[name] += g**2
        n += len(x)
    return {name: F / n for name, F in fisher.items()}


def squared_batch_mean(model: nn.Module, loader: Sequence[Batch]) -> Tensors:
    """Square the gradient of the batch's mean loss, and average over the batches."""
    model.eval()
    fisher = zeros(model)
    for x, y in loader:
        loss = functional.cross_entropy(model(x), y)
        for name, g in gradients(model, loss).items():
            fisher[name] += g**2
    return {name: F / len(loader) for name, F in fisher.items()}


def batch_size_weighting(model: nn.Module, loader: Iterable[Batch]) -> Tensors:
    """Weight the squared batch mean by the batch size, and divide by the number of samples."""
    model.eval()
    fisher, n = zeros(model), 0
    for x, y in loader:
        loss = functional.cross_entropy(model(x), y)
        for name, g in gradients(model, loss).items():
            fisher[name] += len(x) * g**2
        n += len(x)
    return {name: F / n for name, F in fisher.items()}


def squared_sum(model: nn.Module, loader: Iterable[Batch]) -> Tensors:
    """Let the gradients of all samples add up, as ``.grad`` does, and square at the end."""
    model.eval()
    total, n = zeros(model), 0
    for x, y in loader:
        loss = functional.cross_entropy(model(x), y, reduction="sum")
        for name, g in gradients(model, loss).items():
            total[name] += g
        n += len(x)
    return {name: g**2 / n for name, g in total.items()}


def argmax_labels(model: nn.Module, loader: Iterable[Batch]) -> Tensors:
    """Take the network's own top class as the label."""
    model.eval()
    return mean_of_squares(model, [(x, model(x).argmax(1)) for x, _ in loader])


def divided_by_batches(model: nn.Module, loader: Sequence[Batch]) -> Tensors:
    """Add up one square for each sample, and divide by the number of batches."""
    n = sum(len(x) for x, _ in loader)
    return {name: F * n / len(loader) for name, F in mean_of_squares(model, loader).items()}


def divided_by_last_index(model: nn.Module, loader: Iterable[Batch]) -> Tensors:
    """Divide by the last value of the loop's counter, which starts at zero."""
    model.eval()
    fisher = zeros(model)
    samples = ((x[i : i + 1], y[i : i + 1]) for x, y in loader for i in range(len(x)))
    for index, (x, y) in enumerate(samples):  # noqa: B007
        for name, g in gradients(model, functional.cross_entropy(model(x), y)).items():
            fisher[name] += g**2
    return {name: F / index for name, F in fisher.items()}


def old_task(model: nn.Module, old: Iterable[Batch], new: Iterable[Batch]) -> Tensors:
    """Right: measure on the data of the task that is to be remembered."""
    return mean_of_squares(model, old)


def new_task(model: nn.Module, old: Iterable[Batch], new: Iterable[Batch]) -> Tensors:
    """Measure at the start of a task, on the loader at hand: it is the new task's."""
    return mean_of_squares(model, new)


def left_in_train_mode(model: nn.Module, loader: Iterable[Batch]) -> Tensors:
    """Forget ``model.eval()``: after training, dropout is still on, and BatchNorm mixes samples."""
    fisher, n = zeros(model), 0
    for x, y in loader:
        losses = functional.cross_entropy(model(x), y, reduction="none")
        for loss in losses:
            found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            for name, g in zip(fisher, found, strict=True):
                fisher[name] += g**2
        n += len(x)
    return {name: F / n for name, F in fisher.items()}


# --- Wrong anchor -----------------------------------------------------------------------------


class Springs:
    """The penalty as most programs have it: two dicts of tensors and a loop over the names.

    It has what :func:`ewc_tutorial.train` needs for ``update="loss"``.
    """

    def __init__(
        self,
        model: nn.Module,
        fisher: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        lam: float,
    ) -> None:
        self.model, self.fisher, self.anchor, self.lam = model, fisher, anchor, lam

    def penalty(self) -> Tensor:
        """Return λ/2 Σ F (θ − θ*)² over the names that are in ``fisher``."""
        return self.lam / 2 * distance(self.model, self.fisher, self.anchor)


def distance(
    model: nn.Module, fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
) -> Tensor:
    """Return Σ F (θ − θ*)² over the parameters whose names are in ``fisher``."""
    total = torch.zeros((), requires_grad=True)  # to be differentiated even if no name matches
    for name, p in model.named_parameters():
        if name in fisher:
            total = total + (fisher[name] * (p - anchor[name]) ** 2).sum()
    return total


def copied_anchor(model: nn.Module) -> Tensors:
    """Right: a copy of the weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def live_reference(model: nn.Module) -> Tensors:
    """Keep the weights themselves: ``detach()`` and ``.data`` do not copy."""
    return {name: p.detach() for name, p in model.named_parameters()}


class RebuiltEveryEpoch(Springs):
    """Make the anchor anew at the start of each epoch: the springs follow the weights.

    ``train(..., on_step=springs.on_step)`` calls it; ``steps`` is the length of an epoch.
    """

    def __init__(self, *args: Any, steps: int) -> None:
        super().__init__(*args)
        self.steps = steps

    def on_step(self, step: int) -> None:
        if step % self.steps == 0:
            self.anchor = copied_anchor(self.model)


def grown_head_exact(weight: Tensor, anchor: Tensor, fisher: Tensor) -> Tensor:
    """Right: hold the rows that the old head had; the new ones are free.

    Args:
        weight: ``(new classes, features)`` of the grown head, old classes first.
        anchor, fisher: ``(old classes, features)``.
    """
    return (fisher * (weight[: len(anchor)] - anchor) ** 2).sum()


def grown_head_broadcast(weight: Tensor, anchor: Tensor, fisher: Tensor) -> Tensor:
    """Subtract tensors of different shapes: from one row, PyTorch makes as many as it needs."""
    return (fisher * (weight - anchor) ** 2).sum()


# --- Wrong bookkeeping ------------------------------------------------------------------------


def wrapped_names(fisher: Mapping[str, Tensor]) -> Tensors:
    """Name the tensors as a wrapped model does (DistributedDataParallel puts "module." before)."""
    return {f"module.{name}": F for name, F in fisher.items()}


def same_names(fisher: Mapping[str, Tensor]) -> Tensors:
    """Right: the names that the model has where the penalty is computed."""
    return dict(fisher)


def once_per_step(
    model: nn.Module, parts: Sequence[Batch], springs: Springs, step: Callable[[], None]
) -> None:
    """Right: one optimizer step on several micro-batches of equal size, one penalty."""
    model.zero_grad()
    for x, y in parts:
        (functional.cross_entropy(model(x), y) / len(parts)).backward()
    springs.penalty().backward()
    step()


def once_per_micro_batch(
    model: nn.Module, parts: Sequence[Batch], springs: Springs, step: Callable[[], None]
) -> None:
    """Add the penalty to the loss of each micro-batch: it counts as often as there are parts."""
    model.zero_grad()
    for x, y in parts:
        (functional.cross_entropy(model(x), y) / len(parts) + springs.penalty()).backward()
    step()


# --- Wrong units ------------------------------------------------------------------------------


def with_half(model: nn.Module, fisher: Tensors, anchor: Tensors, lam: float) -> Tensor:
    """Right: λ/2 Σ F (θ − θ*)²."""
    return lam / 2 * distance(model, fisher, anchor)


def missing_half(model: nn.Module, fisher: Tensors, anchor: Tensors, lam: float) -> Tensor:
    """Leave the ½ out: λ Σ F (θ − θ*)²."""
    return lam * distance(model, fisher, anchor)


def converted_lam(lam: float, batch_size: int) -> float:
    """Right, if roughly: a λ that was tuned for squared means of batches, in mean-of-squares."""
    return lam / batch_size


def carried_lam(lam: float, batch_size: int) -> float:
    """Take a λ that was tuned for squared means of batches as it is."""
    return lam


BUGS: dict[str, Bug] = {
    bug.name: bug
    for bug in (
        Bug(
            "squared batch mean",
            "F",
            squared_batch_mean,
            mean_of_squares,
            "F is too small by about the batch size, and changes with it",
            "square the gradient of each sample, then average",
        ),
        Bug(
            "batch-size weighting",
            "F",
            batch_size_weighting,
            mean_of_squares,
            "F is too small by about the batch size, though the sizes seem to be accounted for",
            "square the gradient of each sample: a weight does not undo the averaging",
        ),
        Bug(
            "squared sum",
            "F",
            squared_sum,
            mean_of_squares,
            "F is almost zero after good training and enormous before it",
            "square the gradient of each sample before adding",
        ),
        Bug(
            "argmax labels",
            "F",
            argmax_labels,
            mean_of_squares,
            "F does not change when the labels are shuffled, and fades as training goes on",
            "take all classes (exact), a drawn label (sampled), or the data's (empirical)",
        ),
        Bug(
            "divided by the batches",
            "F",
            divided_by_batches,
            mean_of_squares,
            "F doubles with the batch size, and training diverges",
            "divide by the number of squares that were added",
        ),
        Bug(
            "divided by the last index",
            "F",
            divided_by_last_index,
            mean_of_squares,
            "F is too large by one part in N, and a division by zero for a single sample",
            "count the samples, not the index",
        ),
        Bug(
            "F of the new task",
            "F",
            new_task,
            old_task,
            "to keep the old task costs far more of the new one than it should, at every λ",
            "measure at the end of a task, on its own data",
        ),
        Bug(
            "train mode",
            "F",
            left_in_train_mode,
            mean_of_squares,
            "F is too large, and another one each time",
            "call model.eval() before measuring, and restore the mode after it",
        ),
        Bug(
            "live reference",
            "anchor",
            live_reference,
            copied_anchor,
            "the penalty is exactly zero, always",
            "store p.detach().clone()",
        ),
        Bug(
            "anchor rebuilt every epoch",
            "anchor",
            RebuiltEveryEpoch,
            Springs,
            "the penalty falls to zero at the start of each epoch",
            "make the anchor once, when the old task is finished",
        ),
        Bug(
            "head of another shape",
            "anchor",
            grown_head_broadcast,
            grown_head_exact,
            "the penalty is not zero before the first step",
            "hold the rows that the old head had, or leave the head out",
        ),
        Bug(
            "names that never match",
            "bookkeeping",
            wrapped_names,
            same_names,
            "the penalty is exactly zero, always",
            "compare the names once, and raise an error if one is missing",
        ),
        Bug(
            "penalty per micro-batch",
            "bookkeeping",
            once_per_micro_batch,
            once_per_step,
            "the result changes with the number of micro-batches",
            "add the penalty once per optimizer step",
        ),
        Bug(
            "missing ½",
            "units",
            missing_half,
            with_half,
            "the gradient is twice λF(θ − θ*)",
            "write λ/2, or say that your λ is half of everybody else's",
        ),
        Bug(
            "λ of another convention",
            "units",
            carried_lam,
            converted_lam,
            "training diverges, or nothing is protected",
            "convert λ (notebook 03), or tune it anew",
        ),
    )
}
