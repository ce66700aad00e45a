"""An independent oracle: single samples, float64, log-likelihoods written out, plain autograd."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


def log_likelihoods(outputs, labels, likelihood, classes=None, variance=1.0, ignore_index=-100):
    """Return log p of one sample's labels, one term per independent output."""
    if likelihood == "bernoulli":
        p = torch.sigmoid(outputs.flatten())
        y = labels.flatten().to(p)
        return y * torch.log(p) + (1 - y) * torch.log1p(-p)
    if likelihood == "gaussian":
        residual = labels.flatten() - outputs.flatten()
        return -residual.square() / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)
    logits = outputs.reshape(-1, outputs.shape[-1])
    if classes is not None:
        inactive = torch.ones(logits.shape[-1], dtype=torch.bool)
        inactive[list(classes)] = False
        logits = logits.masked_fill(inactive, -math.inf)
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    labels = labels.flatten()
    counted = labels != ignore_index
    return log_p[counted, labels[counted]]


def loop_fisher(
    model,
    x,
    y=None,
    estimator="exact",
    likelihood="categorical",
    classes=None,
    variance=1.0,
    ignore_index=-100,
):
    """Return the diagonal Fisher by the definition: samples and labels one by one, in float64.

    ``sampled`` has no oracle of this kind. For several independent outputs ``exact`` adds the
    outputs' expected squared scores.
    """  # fmt: skip
    model = copy.deepcopy(model).double().eval()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    x = x.double() if x.is_floating_point() else x

    def add(log_p, weight):
        make_gradients_contiguous(log_p)
        gradients = torch.autograd.grad(
            log_p, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                total[name] += weight * gradient.square()

    for n in range(len(x)):
        outputs = model(x[n : n + 1])
        label = None if y is None else y[n : n + 1]
        terms = {"classes": classes, "variance": variance, "ignore_index": ignore_index}
        if estimator == "empirical":
            add(log_likelihoods(outputs, label, likelihood, **terms).sum(), 1.0)
        elif estimator == "argmax":
            top = _mode(outputs, likelihood, classes)
            if label is not None and outputs.ndim > 2:
                top = torch.where(label == ignore_index, label, top)
            add(log_likelihoods(outputs, top, likelihood, **terms).sum(), 1.0)
        elif likelihood == "gaussian":
            # E[(∂ log p)²] = (∂f)²/σ², since E[(y − f)²] = σ².
            for f in outputs.flatten():
                add(f, 1 / variance)
        elif likelihood == "bernoulli":
            for k, f in enumerate(outputs.flatten()):
                p = torch.sigmoid(f.detach())
                for value, probability in ((1, p), (0, 1 - p)):
                    labels = torch.full_like(outputs.detach().flatten(), value)
                    add(log_likelihoods(outputs, labels, likelihood)[k], probability)
        else:
            _add_exact_categorical(outputs, label, terms, add)
    return {name: value / len(x) for name, value in total.items()}


def make_gradients_contiguous(output):
    """Copy every gradient on its way back into a plain layout.

    PyTorch's BatchNorm on a CPU (2.14) takes those of a single sample in another layout for
    something else.
    """
    front, seen = [output.grad_fn], {None}
    while front:
        node = front.pop()
        if node in seen:
            continue
        seen.add(node)
        front += [before for before, _ in node.next_functions]
        if not hasattr(node, "variable"):
            node.register_prehook(
                lambda gradients: tuple(g if g is None else g.contiguous() for g in gradients)
            )


def _add_exact_categorical(outputs, label, terms, add):
    C = outputs.shape[-1]
    for t, token in enumerate(outputs.reshape(-1, C)):
        if label is not None and outputs.ndim > 2 and label.flatten()[t] == terms["ignore_index"]:
            continue
        for c in range(C) if terms["classes"] is None else terms["classes"]:
            log_p = log_likelihoods(token[None], torch.tensor([c]), "categorical", **terms)[0]
            add(log_p, log_p.detach().exp())


def _mode(outputs, likelihood, classes):
    if likelihood == "bernoulli":
        return (outputs > 0).long()
    if classes is None:
        return outputs.argmax(-1)
    return torch.tensor(sorted(classes))[outputs[..., sorted(classes)].argmax(-1)]


def batched_fisher(model, x, y, batch_size):
    """Return the squared gradients of the mean loss of batches, weighted by their sizes."""
    model = copy.deepcopy(model).double().eval()
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        model.zero_grad()
        nn.functional.cross_entropy(model(x[part].double()), y[part]).backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.square() * len(x[part])
    return {name: value / len(x) for name, value in total.items()}


def assert_fisher_close(actual, expected, rtol=None):
    """Compare within 1e-5 of each tensor's largest entry (1e-10 in float64)."""
    assert actual.keys() == expected.keys()
    largest = max(value.max().item() for value in expected.values())
    for name, value in expected.items():
        bound = rtol or (1e-10 if actual[name].dtype == torch.float64 else 1e-5)
        error = (actual[name].double() - value).abs().max().item()
        # Where a tensor's gradients cancel, what is left carries the rounding errors of the others.
        scale = max(value.max().item(), 1e-4 * largest)
        assert error <= bound * scale, f"{name}: error {error / scale:.1e} of the largest entry"
