"""Many trainings of a small language model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ewc_tutorial import EWC
from ewc_tutorial.course.training import batches
from ewc_tutorial.huggingface import pad_batch


def side_by_side(
    model: nn.Module,
    data: Sequence[Mapping[str, list[int]]],
    penalties: Tensor,
    *,
    steps: int = 200,
    lr: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> Tensor:
    """Train copies of a model at once, each with springs of its own around its present weights.

    Every copy is trained as ``train_quietly`` trains (AdamW, gradients clipped to norm 1, a falling
    learning rate, the springs' gradient added after clipping), all of them with the same batches,
    in about a third of the time.

    Args:
        model: a causal language model without dropout; it stays as it is.
        data: as ``items`` makes it.
        penalties: λF, ``(R, P)``, a row for each copy.
        steps, lr, batch_size, seed: of the training.

    Returns:
        The weights at the end, ``(R, P)``.
    """
    start = {name: p.detach() for name, p in model.named_parameters()}
    copies = {name: p.repeat(len(penalties), *[1] * p.ndim) for name, p in start.items()}
    parts = penalties.split([p.numel() for p in start.values()], dim=1)
    springs = {name: k.view(-1, *start[name].shape) for name, k in zip(start, parts, strict=True)}
    ids, labels = _padded(data)
    gradients = _gradients(model)
    adam = torch.optim.AdamW(list(copies.values()), lr=lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    order = batches(len(ids), batch_size, seed)
    for _ in range(steps):
        rows = next(order)
        found = gradients(copies, {}, ids[rows], labels[rows])
        norms = sum(g.flatten(1).square().sum(1) for g in found.values()).sqrt()
        scale = (1 / (norms + 1e-6)).clamp(max=1)
        for name, p in copies.items():
            shrunk = found[name] * scale.view(-1, *[1] * start[name].ndim)
            p.grad = shrunk + springs[name] * (p - start[name])
        adam.step()
        falling.step()
    return torch.cat([p.flatten(1) for p in copies.values()], dim=1)


def together(
    models: Sequence[nn.Module],
    ewcs: Sequence[EWC | None],
    data: Sequence[Mapping[str, list[int]]],
    *,
    steps: int = 200,
    lr: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Train models of one kind at once, each held back by an EWC of its own.

    As :func:`side_by_side`, but the models may start at different weights, and of a model with
    adapters these are trained alone.

    Args:
        models: causal language models without dropout, trained in place.
        ewcs: of each model, or None.
        data, steps, lr, batch_size, seed: as for :func:`side_by_side`.
    """
    trained = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in models]
    frozen = _stacked(
        [{n: p for n, p in model.named_parameters() if not p.requires_grad} for model in models]
    )
    ids, labels = _padded(data)
    gradients = _gradients(models[0])
    adam = torch.optim.AdamW([p for own in trained for p in own.values()], lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    order = batches(len(ids), batch_size, seed)
    for _ in range(steps):
        rows = next(order)
        found = gradients(_stacked(trained), frozen, ids[rows], labels[rows])
        for i, (own, ewc) in enumerate(zip(trained, ewcs, strict=True)):
            for name, p in own.items():
                p.grad = found[name][i].clone()
            nn.utils.clip_grad_norm_(own.values(), 1.0)
            if ewc is not None:
                ewc.add_gradient_()
        adam.step()
        falling.step()


def _stacked(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name].detach() for part in parts]) for name in parts[0]}


def _padded(data: Sequence[Mapping[str, list[int]]]) -> tuple[Tensor, Tensor]:
    """Return ids and labels. Padding stands on the right, where a model of the next token does not
    see it: no mask."""
    padded = pad_batch(data, pad_token_id=0)
    return padded["input_ids"], padded["labels"]


def _gradients(model: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """Return what gives the gradients of the mean loss per token by weights, (R, …) each, given
    these, other weights (R, …) that are not trained, ids and labels."""

    def loss(
        weights: dict[str, Tensor], others: dict[str, Tensor], ids: Tensor, labels: Tensor
    ) -> Tensor:
        inputs = {"input_ids": ids, "use_cache": False}
        logits = functional_call(model, weights | others, (), inputs).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    each = vmap(grad(loss), in_dims=(0, 0, None, None))

    def gradients(*arguments: Any) -> dict[str, Tensor]:
        # The fused kernels of attention cannot be batched over copies.
        with sdpa_kernel(SDPBackend.MATH):
            return each(*arguments)

    return gradients
