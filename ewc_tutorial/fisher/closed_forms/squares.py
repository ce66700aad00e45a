"""One batch: a backward pass to the outputs of layers for each seed, squared and summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ewc_tutorial.fisher.closed_forms.calls import plain_arithmetic, wide
from ewc_tutorial.fisher.closed_forms.factors import Basis, LayerFactors, rotated
from ewc_tutorial.fisher.closed_forms.graph import Use
from ewc_tutorial.fisher.closed_forms.sums import make_reducer
from ewc_tutorial.fisher.likelihoods.base import Seeds
from ewc_tutorial.fisher.per_sample import Squares


def squares_by_closed_forms(
    outputs: Tensor,
    parameters: Mapping[str, Tensor],
    uses: dict[str, list[Use]],
    seeds: Seeds,
    layers: Mapping[str, str | None] | None = None,
    bases: Mapping[str, Basis] | None = None,
) -> Squares:
    """Return Σ_n Σ_k (J_nᵀ s_nk)² for the parameters whose uses are given.

    Args:
        outputs: of the model for a batch, (B, ...), with their graph.
        parameters: by name.
        uses: per name all uses of that parameter; none means that the outputs do not depend on it.
        seeds: gradients by the outputs, each (B, ...).
        layers: weights, with their biases, that get the sums of Kronecker factors instead, under
            ``weight:A`` and ``weight:G``; all their uses are products.
        bases: eigenvectors of the factors of all these weights; with them the sums are those of
            the squares in that basis, under ``weight:E``.
    """
    layers, bases = layers or {}, bases or {}
    device = outputs.device
    edges = list({use.edge: None for seen in uses.values() for use in seen})
    place = {edge: i for i, edge in enumerate(edges)}
    reducers = []
    for name, seen in uses.items():
        if seen and name not in layers.values():
            parts, shape = [use.part for use in seen], parameters[name].shape
            if name in bases:
                with plain_arithmetic(device):
                    parts = rotated(parts, layers[name] is not None, bases[name])
                shape = torch.Size(len(U) for U in reversed(bases[name]))
            if name in layers and name not in bases:
                reducer = LayerFactors(parts, layers[name] is not None)
            else:
                reducer = make_reducer(parts, shape, len(seeds), _products_at_a_time(device))
            reducers.append((name, reducer, [place[use.edge] for use in seen]))
    seeded = False
    for seed in seeds if edges else ():
        seeded = True
        gradients = torch.autograd.grad(outputs, edges, seed, retain_graph=True)
        with plain_arithmetic(device):
            gradients = [wide(g) for g in gradients]
            for _, reducer, places in reducers:
                reducer.add([gradients[i] for i in places])
        del gradients  # before the next ones
    with plain_arithmetic(device):
        factored = {*layers, *layers.values()}
        sums: Squares = {}
        while reducers:
            name, reducer, _ = reducers.pop()  # what it holds is freed at once
            if name in bases:
                if seeded:
                    shape = [len(U) for U in reversed(bases[name])]
                    sums[f"{name}:E"] = reducer.result().reshape(shape)  # type: ignore[attr-defined]
            elif name in layers:
                A, G = reducer.result()
                sums |= {f"{name}:A": A} | ({f"{name}:G": G} if seeded else {})
            elif seeded:  # of one class alone, or of ignored tokens alone, there is nothing to sum
                p = parameters[name]
                squares = reducer.result().reshape(p.shape)  # type: ignore[attr-defined]
                sums[name] = squares.to(torch.promote_types(p.dtype, torch.float32))
        for name in uses:
            if name not in factored and name not in sums:
                sums[name] = torch.zeros_like(wide(parameters[name].detach()))
    return sums


def _products_at_a_time(device: torch.device) -> int:
    """Return how many elements of single samples' gradients to form at a time.

    On a CPU they had better stay in a core's cache until they are squared and summed.
    """
    return 2**18 if device.type == "cpu" else 2**26
