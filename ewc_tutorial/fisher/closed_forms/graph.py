"""Finds all uses of each parameter in a forward pass.

A hook sees only calls of its module. A parameter that is also used elsewhere
(``F.linear(x, layer.weight)``, a weight norm, a module whose ``forward`` is called directly) would
be given the Fisher information of some of its uses. The graph knows better: it has one edge into a
parameter for each use, and :class:`Graph` counts them. It also shows uses that no hook sees, and
two kinds of them have closed forms, too: a broadcast over the samples, and a product.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ewc_tutorial.fisher.closed_forms.calls import Call, wide
from ewc_tutorial.fisher.closed_forms.layers import Broadcast, Direct, Part, Product


@dataclass(frozen=True)
class Use:
    """One use of a parameter.

    Attributes:
        edge: where in the graph the gradient g that the part needs will appear.
        part: what the per-sample gradients are made of, given g.
        kind: how the use was understood, in words.
        rows: how many rows each sample was taken to have in the first dimension. With more than
            one, that is one of several ways to understand it.
    """

    edge: GradientEdge
    part: Part
    kind: str
    rows: int = 1


Kinds = frozenset[tuple[str, float]]


def kinds(uses: list[Use], elements: int) -> Kinds:
    """Return how uses were understood, where the inputs have so many elements per sample.

    Rows that are assumed to be the samples' own go with the size of the inputs. If they do not, as
    where an expert is given some of them, the assumption has not been tried.
    """
    return frozenset((use.kind, use.rows / elements if use.rows > 1 else 0.0) for use in uses)


class Graph:
    """The autograd graph behind some outputs.

    Attributes:
        consumers: for each operation, those that its result enters, once for each time.
        users: for each leaf, the operations that it enters, once for each time.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.consumers: dict[Node, list[Node]] = {}
        self.users: dict[Tensor, list[Node]] = defaultdict(list)
        front = [] if outputs.grad_fn is None else [outputs.grad_fn]
        self.consumers.update((node, []) for node in front)
        while front:
            consumer = front.pop()
            for node, _ in consumer.next_functions:
                if hasattr(node, "variable"):  # the node that accumulates into a leaf
                    self.users[node.variable].append(consumer)
                elif node is not None:
                    if node not in self.consumers:
                        self.consumers[node] = []
                        front.append(node)
                    self.consumers[node].append(consumer)

    def signature(self) -> int:
        """Return a number that two graphs share if they have the same operations and shapes."""
        return hash(tuple((node.name(), _shape(node)) for node in self.consumers))

    def __contains__(self, node: Node) -> bool:
        return node in self.consumers


def readings(
    graph: Graph,
    calls: list[Call],
    parameters: Mapping[str, Tensor],
    batch: int,
    done: Container[str],
) -> Iterator[dict[str, list[Use]]]:
    """Yield readings of the graph: each gives the uses of the parameters that it can read.

    Args:
        graph: behind the outputs of a batch.
        calls: of layers, in the same forward pass.
        parameters: by name.
        batch: the number of samples.
        done: parameters that are in here when the next reading is asked for are left out of it.
    """
    yield layer_uses(graph, calls, parameters, batch)
    for read in (
        broadcast_uses,
        partial(product_uses, positions_first=False),
        partial(product_uses, positions_first=True),
    ):
        left = {name: p for name, p in parameters.items() if name not in done}
        if not left:
            return
        found = {name: read(graph, p, batch) for name, p in left.items()}
        yield {name: uses for name, uses in found.items() if uses is not None}


def layer_uses(
    graph: Graph, calls: list[Call], parameters: Mapping[str, Tensor], batch: int
) -> dict[str, list[Use]]:
    """Return the uses of the parameters that only layers with a closed form use.

    A parameter that the outputs do not depend on is there, too, with no use.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    found: dict[str, list[Use]] = {name: [] for name in parameters}
    for call in calls:
        if call.edge.node not in graph:
            continue  # no output depends on it
        for parameter, part in call.parts(batch).items():
            if parameter in names:
                rows = len(call.a) // batch
                kind = type(call.layer).__name__ + " on flattened samples" * (rows > 1)
                found[names[parameter]].append(Use(call.edge, part, kind, rows))
    return {n: uses for n, uses in found.items() if len(graph.users[parameters[n]]) == len(uses)}


def broadcast_uses(graph: Graph, parameter: Tensor, batch: int) -> list[Use] | None:
    """Return the one use of a parameter that meets the samples in one broadcast, or None.

    Position tables, class tokens and layer scales are added to, or multiplied with, a tensor of all
    samples, perhaps after a look-up, a change of shape or of scale. From the parameter up, the
    graph is then a chain of operations with one argument, up to the one whose result has a row for
    each sample: there the gradient is still one for each sample.
    """
    users = graph.users[parameter]
    if len(users) != 1:
        return None
    below, node = None, users[0]
    while (name := _name(node)) not in _BROADCASTS or _shape(node)[:1] != (batch,):
        has_one_argument = sum(n is not None for n, _ in node.next_functions) == 1
        if not has_one_argument or len(graph.consumers[node]) != 1:
            return None
        below, node = node, graph.consumers[node][0]
    shape = tuple(parameter.shape) if below is None else _shape(below)
    rank = len(_shape(node))
    has_samples = len(shape) == rank and shape[0] > 1
    if len(shape) > rank or has_samples:
        return None
    factor = None
    if name == "MulBackward":
        first = _enters(node, 0, below, parameter)
        factor = _saved(node, "_saved_other" if first else "_saved_self")
        if factor is None or factor.ndim != rank or len(factor) != batch:
            return None
        factor = wide(factor.detach())
    elif getattr(node, "_saved_alpha", 1) != 1:
        return None
    chain = None if below is None else GradientEdge(below, 0)
    part = Broadcast(parameter, shape, chain, factor)
    return [Use(GradientEdge(node, 0), part, f"broadcast by {name.removesuffix('Backward')}")]


def product_uses(
    graph: Graph, parameter: Tensor, batch: int, positions_first: bool
) -> list[Use] | None:
    """Return the uses of a parameter, each as the W or b of x Wᵀ, x W or x Wᵀ + b, or None.

    Packed attention and ``F.linear`` multiply outside any layer that a hook would see, but the
    graph has kept x. Its rows are samples and positions; which of the two comes first it does not
    say, so both are tried.
    """
    uses = [
        _product_use(graph, u, parameter, batch, positions_first) for u in graph.users[parameter]
    ]
    return None if None in uses else uses


def _product_use(
    graph: Graph, node: Node, parameter: Tensor, batch: int, positions_first: bool
) -> Use | None:
    below, turned = None, False
    while (name := _name(node)) in (*_TURNS, _CAST):
        if len(graph.consumers[node]) != 1:
            return None
        turned ^= name in _TURNS
        below, node = node, graph.consumers[node][0]
    is_weight = name in _PRODUCTS and _enters(node, -1, below, parameter)
    added_first = name == "AddmmBackward" and _enters(node, 0, below, parameter)
    is_bias = parameter.ndim == 1 and (added_first or name == "AddBackward")
    x = _saved(node, _PRODUCTS[name]) if is_weight else None
    if not (is_bias or x is not None) or (n_rows := math.prod(_shape(node)[:-1])) % batch:
        return None

    def dealt(t: Tensor) -> Tensor:
        """Return rows (…, D) as (B, 1, D, T)."""
        if positions_first:
            return t.reshape(-1, batch, 1, t.shape[-1]).permute(1, 2, 3, 0)
        return t.reshape(batch, 1, -1, t.shape[-1]).mT

    if is_weight:
        part: Part = Product(dealt(wide(x.detach())), dealt, transposed=not turned)
    else:
        part = Direct(lambda g: dealt(g).sum((1, 3)))
        # The gradient by the sum is that by the product that the bias is added to.
        node = _product_below(graph, node) or node
    kind = "matrix product"
    if n_rows > batch:
        kind += ", positions first" if positions_first else ", samples first"
    return Use(GradientEdge(node, 0), part, kind, n_rows // batch)


def _product_below(graph: Graph, node: Node) -> Node | None:
    """Return the product whose result, perhaps in another shape, is nothing but a summand here."""
    if _name(node) != "AddBackward" or getattr(node, "_saved_alpha", 1) != 1:
        return None
    summand = node.next_functions[0][0]
    while summand is not None and len(graph.consumers.get(summand, ())) == 1:
        if _name(summand) in _PRODUCTS:
            return summand if math.prod(_shape(summand)) == math.prod(_shape(node)) else None
        if _name(summand) not in _VIEWS:
            return None
        summand = summand.next_functions[0][0]
    return None


# What follows are names inside PyTorch's autograd, as of torch 2.6 to 2.14. Where one of them is
# missing or means something else, a parameter gets no closed form, or one that the probe rejects.

#: Matrix products, and where the graph keeps x.
_PRODUCTS = {"AddmmBackward": "_saved_mat1", "MmBackward": "_saved_self"}
#: What a weight goes through before its product: a transposition, autocast's change of type.
_TURNS = ("TBackward", "PermuteBackward", "TransposeBackward")
_CAST = "ToCopyBackward"

#: Changes of shape that keep the order of the elements.
_VIEWS = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward")

#: Operations that join a tensor without samples to one with samples.
_BROADCASTS = ("AddBackward", "ExpandBackward", "MulBackward")


def _name(node: Node) -> str:
    """Return the name of an operation without the number of its variant."""
    return node.name().removesuffix("0")


def _shape(node: Node) -> tuple[int, ...]:
    """Return the shape of an operation's result; of one that does not tell, an empty one."""
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else ()


def _saved(node: Node, name: str) -> Tensor | None:
    """Return what the graph keeps under a name, if anything, and if it is as it was then."""
    try:
        return getattr(node, name, None)
    except RuntimeError:  # changed in place since
        return None


def _enters(node: Node, place: int, below: Node | None, parameter: Tensor) -> bool:
    """Return whether an argument of ``node`` is ``below``'s result, or the parameter itself."""
    argument = node.next_functions[place][0]
    if below is not None:
        return argument is below
    return getattr(argument, "variable", None) is parameter
