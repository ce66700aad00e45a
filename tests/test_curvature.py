"""Kronecker-factored EWC against dense matrices, autograd and finite differences."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from kronecker_oracle import block, dense_fisher, eigenblock, flat, random_factors
from torch import nn, optim
from torch.nn.utils import prune

from ewc_tutorial.course.models import mlp
from ewc_tutorial.curvature import Kronecker
from ewc_tutorial.curvature.blocks import EigenBlock
from ewc_tutorial.curvature.subproblem import solve
from ewc_tutorial.ewc import EWC, L2
from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.unlearning import TaskMemory
from experiments.kronecker_sums import Pairs

#: Both kinds of eigenvalues.
BOTH = pytest.mark.parametrize("eigenvalues", ["product", "exact"])


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return mlp(3, [4], 2, activation=nn.Tanh, seed=0).to(dtype)


def move(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype))


def after_tasks(n_tasks: int = 1, model: nn.Module | None = None, **options):
    """Consolidate random factors; return model, EWC, and what went in with its weight."""
    model = network() if model is None else model
    ewc = EWC(model, curvature=options.pop("curvature", "kronecker"), **options)
    stored = []
    for task in range(n_tasks):
        move(model, seed=10 + task)
        F = random_factors(ewc.shapes(), seed=task)
        weight = 1.0 + task % 2
        ewc.merge(F, weight)
        stored.append((F, weight, {n: v.detach().clone() for n, v in ewc.values().items()}))
    move(model, seed=99)
    return model, ewc, stored


def dense(ewc: EWC) -> torch.Tensor:
    """Return S written out, for the values one after the other, from the state alone."""
    state, total = ewc.state_dict(), []
    strength = state["_extra_state"]["strength_by_layer"]
    names = list(ewc.names)
    while names:
        name = names.pop(0)
        key = name.replace(".", "/")
        if f"A:{key}" in state:
            A, G = state[f"A:{key}"].double(), state[f"G:{key}"].double()
            weight = ewc.model.get_parameter(name)
            bias = len(A) > weight[0].numel()
            if bias:
                names.pop(0)
            matrix = block(A, G, bias)
            if f"E:{key}" in state:
                matrix = eigenblock(*(state[f"{kind}:{key}"] for kind in ("UA", "UG", "E")), bias)
            total.append(strength[name] * matrix)
        else:
            total.append(state[f"importance:{key}"].double().flatten().diag())
    return torch.block_diag(*total)


def mixed() -> nn.Module:
    """Layers of every kind: a convolution, a normalisation, a scale, linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3, bias=False),
        nn.LayerNorm(3), nn.Linear(3, 2),
    ).double()  # fmt: skip


# --- the matrix ---------------------------------------------------------------------------------


def test_for_one_sample_the_penalty_is_that_of_the_true_fisher_of_each_layer():
    model, x = network(), torch.randn(1, 3, dtype=torch.float64)
    names = [["0.weight", "0.bias"], ["2.weight", "2.bias"]]
    F = torch.block_diag(*(dense_fisher(model, part, x) for part in names))
    ewc = EWC(model, lam=3.0, curvature="kronecker")
    ewc.consolidate((x, None))
    before = flat(model.parameters())
    move(model, seed=1)
    away = flat(model.parameters()) - before
    assert ewc.penalty().item() == pytest.approx(1.5 * (away @ F @ away).item(), rel=1e-10)


def test_for_linear_regression_the_whole_fisher_is_one_kronecker_product():
    model, x = nn.Linear(3, 2).double(), torch.randn(20, 3, dtype=torch.float64)
    F = dense_fisher(model, ["weight", "bias"], x, likelihood="gaussian", variance=0.5)
    ewc = EWC(model, curvature="kronecker")
    ewc.consolidate((x, None), likelihood="gaussian", variance=0.5)
    torch.testing.assert_close(dense(ewc), F, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flat(ewc.importance.values()), F.diagonal())


def test_with_exact_eigenvalues_each_block_has_the_trace_of_the_true_one():
    model, x = mixed(), torch.randn(6, 1, 3, 3, dtype=torch.float64)
    ewc = EWC(model, curvature=Kronecker(eigenvalues="exact"))
    assert "with eigenvectors, exact eigenvalues" in ewc.explain()["0.weight"]
    ewc.consolidate((x, None))
    S, start = dense(ewc), 0
    for names in (["0.weight", "0.bias"], ["1.weight"], ["1.bias"], ["3.weight"]):
        F = dense_fisher(model, names, x)
        mine = S[start : start + len(F), start : start + len(F)]
        torch.testing.assert_close(mine.trace(), F.trace(), rtol=1e-9, atol=0)
        start += len(F)


@BOTH
@pytest.mark.parametrize("make", [network, mixed])
def test_everything_follows_from_the_dense_matrix(make, eigenvalues):
    model, ewc, stored = after_tasks(
        1, make(), lam=3.0, curvature=Kronecker(eigenvalues=eigenvalues)
    )
    S, mu = dense(ewc), flat(stored[0][2].values())
    away = flat(model.parameters()) - mu
    assert ewc.penalty().item() == pytest.approx(1.5 * (away @ S @ away).item(), rel=1e-10)
    torch.testing.assert_close(flat(ewc.importance.values()), S.diagonal())
    ewc.penalty().backward()
    by_autograd = flat(p.grad for p in model.parameters())
    torch.testing.assert_close(by_autograd, 3 * S @ away, rtol=1e-9, atol=1e-9)
    ewc.add_gradient_()
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), 2 * by_autograd)


@BOTH
def test_the_gradient_is_that_of_finite_differences(eigenvalues):
    model, ewc, _ = after_tasks(2, lam=2.0, curvature=Kronecker(eigenvalues=eigenvalues))
    ewc.add_gradient_()
    for p in model.parameters():
        entries, h = p.data.view(-1), 1e-5
        for i, value in enumerate(entries.tolist()):
            entries[i] = value + h
            up = ewc.penalty().item()
            entries[i] = value - h
            down = ewc.penalty().item()
            entries[i] = value
            assert p.grad.view(-1)[i].item() == pytest.approx((up - down) / (2 * h), abs=1e-5)


@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("rank", [None, 1])
@BOTH
def test_the_proximal_step_is_that_of_the_dense_matrix(lam, rank, eigenvalues):
    model = mixed()
    ewc = EWC(model, lam, curvature=Kronecker(eigenvalues=eigenvalues))
    ewc.merge(random_factors(ewc.shapes(), seed=0, rank=rank))
    S, mu = dense(ewc), flat(model.parameters())
    move(model, seed=1)
    away = flat(model.parameters()) - mu
    ewc.proximal_step_(0.3)
    identity = torch.eye(len(S), dtype=torch.float64)
    # (1 + ηλS)⁻¹ by eigenvalues, as the plain solution loses its digits at 1e12.
    s, U = torch.linalg.eigh(S)
    s[s < 1e-13 * s.max()] = 0
    expected = U @ ((U.T @ away) / (1 + 0.3 * lam * s))
    torch.testing.assert_close(flat(model.parameters()) - mu, expected, rtol=1e-8, atol=1e-9)
    if lam <= 1e3:
        solved = torch.linalg.solve(identity + 0.3 * lam * S, away)
        torch.testing.assert_close(flat(model.parameters()) - mu, solved, rtol=1e-8, atol=1e-9)


@BOTH
def test_directions_that_no_input_takes_stay_free_at_every_strength(eigenvalues):
    """In float32: an eigenvalue that is zero but for rounding must not turn stiff."""
    model = nn.Linear(30, 5, bias=False)
    ewc = EWC(model, lam=1e10, curvature=Kronecker(eigenvalues=eigenvalues))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 10, generator=g) @ torch.randn(10, 30, generator=g)
    ewc.consolidate((x, None), likelihood="gaussian")
    _, _, V = torch.linalg.svd(x)
    free = torch.outer(torch.randn(5, generator=g), V[20])
    with torch.no_grad():
        model.weight.add_(free + torch.outer(torch.ones(5), V[0]))
    wanted = ewc.anchor["weight"] + free
    ewc.proximal_step_(0.1)
    torch.testing.assert_close(model.weight.detach(), wanted, rtol=0, atol=1e-3)


# --- several tasks ------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "gamma"), [("latest", 1.0), ("online", 0.6), ("average", 1.0)])
def test_tasks_combine_by_summed_factors_divided_by_their_weight(rule, gamma):
    model, ewc, stored = after_tasks(3, rule=rule, gamma=gamma, lam=2.0)
    weights = [w * gamma ** (2 - t) for t, (_, w, _) in enumerate(stored)]
    total, expected = sum(weights), []
    for layer in ("0.weight", "2.weight"):
        A, G = (sum(w * F[f"{layer}:{k}"] for w, (F, *_) in zip(weights, stored, strict=True))
                for k in "AG")  # fmt: skip
        expected.append(block(A, G, True) / (total if rule != "average" else total**2))
    S = torch.block_diag(*expected)
    away = flat(model.parameters()) - flat(stored[-1][2].values())
    assert ewc.penalty().item() == pytest.approx((away @ S @ away).item(), rel=1e-10)


@pytest.mark.parametrize(("rule", "gamma"), [("latest", 1.0), ("online", 0.6), ("average", 1.0)])
@pytest.mark.parametrize("rank", [None, 2])
def test_exact_eigenvalues_are_carried_into_the_basis_of_the_summed_factors(rule, gamma, rank):
    """Each time the diagonal, in the new basis, of the matrix so far with the new one."""
    model = nn.Linear(3, 3).double()
    ewc = EWC(model, rule=rule, gamma=gamma, curvature=Kronecker(eigenvalues="exact"))
    total, S = 0.0, torch.zeros(12, 12, dtype=torch.float64)
    means = {"A": torch.zeros(4, 4).double(), "G": torch.zeros(3, 3).double()}
    for task in range(3):
        F, weight = random_factors(ewc.shapes(), seed=task, rank=rank), 1.0 + task % 2
        ewc.merge(F, weight)
        before, total = gamma * total, gamma * total + weight
        for side, mean in means.items():
            mean.mul_(before).add_(F[f"weight:{side}"], alpha=weight).div_(total)
        S = gamma * S + weight * eigenblock(*(F[f"weight:{k}"] for k in ("UA", "UG", "E")), True)
        _, V = torch.linalg.eigh(block(means["A"], means["G"], True))
        S = V @ (V.T @ S @ V).diagonal().diag() @ V.T
    torch.testing.assert_close(dense(ewc), S / (total if rule == "average" else 1.0))


@BOTH
def test_the_experiment_s_pairs_are_the_exact_sum(eigenvalues):
    """A curvature of its own, in one file: the sum over tasks written out, and its step solved."""
    model, S = network(), 0.0
    ewc = EWC(model, lam=2.0, curvature=Pairs(eigenvalues=eigenvalues))
    for task in range(3):
        F, weight = random_factors(ewc.shapes(), seed=task), 1.0 + task
        move(model, seed=task)
        ewc.merge(F, weight)
        blocks = []
        for layer in ("0.weight", "2.weight"):
            A, G, *eigen = (F[f"{layer}:{k}"] for k in EigenBlock.kinds if f"{layer}:{k}" in F)
            blocks.append(eigenblock(*eigen, bias=True) if eigen else block(A, G, bias=True))
        S = S + weight * torch.block_diag(*blocks)
    restored = EWC(copy.deepcopy(model), curvature=Pairs(eigenvalues=eigenvalues))
    restored.load_state_dict(ewc.state_dict())
    for each in (ewc, restored):
        mu = flat(each.model.parameters())
        move(each.model, seed=9)
        away = flat(each.model.parameters()) - mu
        assert each.penalty().item() == pytest.approx((away @ S @ away).item(), rel=1e-10)
        torch.testing.assert_close(flat(each.importance.values()), S.diagonal())
        each.add_gradient_()
        torch.testing.assert_close(flat(p.grad for p in each.model.parameters()), 2 * S @ away)
        each.proximal_step_(0.3)
        expected = torch.linalg.solve(torch.eye(len(S)).double() + 0.6 * S, away)
        moved = flat(each.model.parameters()) - mu
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-7)


def test_of_tasks_in_one_basis_the_sum_of_exact_eigenvalues_is_exact():
    model, expected = nn.Linear(3, 2).double(), 0.0
    ewc = EWC(model, curvature=Kronecker(eigenvalues="exact"))
    first = random_factors(ewc.shapes(), 0)
    for task in range(4):
        E = random_factors(ewc.shapes(), task)["weight:E"]
        ewc.merge(first | {"weight:E": E}, weight=0.5 + task)
        one = eigenblock(first["weight:UA"], first["weight:UG"], E, bias=True)
        expected = expected + (0.5 + task) * one
    torch.testing.assert_close(dense(ewc), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", ["A", "G"])
def test_the_sum_is_exact_where_tasks_share_a_factor(shared):
    model = nn.Linear(3, 2).double()
    ewc = EWC(model, curvature="kronecker")
    first, expected = random_factors(ewc.shapes(), 0), 0.0
    for task in range(4):
        F = random_factors(ewc.shapes(), task) | {f"weight:{shared}": first[f"weight:{shared}"]}
        ewc.merge(F, weight=0.5 + task)
        expected = expected + (0.5 + task) * block(F["weight:A"], F["weight:G"], True)
    torch.testing.assert_close(dense(ewc), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("rule", "gamma"), [("latest", 1.0), ("online", 0.6), ("average", 1.0)])
def test_a_layer_that_one_task_uses_keeps_the_factors_of_that_task(rule, gamma):
    """As a head of its own for each task: the other tasks' Fisher is zero there."""
    model = nn.Linear(3, 2).double()
    ewc = EWC(model, rule=rule, gamma=gamma, curvature="kronecker")
    F = random_factors(ewc.shapes(), 0)
    unused = {name: torch.zeros_like(factor) for name, factor in F.items()}
    for task, weight in ((unused, 2.0), (F, 0.5), (unused, 1.5), (unused, 1.0)):
        ewc.merge(task, weight)
    weight = {"latest": 0.5, "online": 0.5 * gamma**2, "average": 0.5 / 5.0}[rule]
    expected = weight * block(F["weight:A"], F["weight:G"], True)
    torch.testing.assert_close(dense(ewc), expected, rtol=1e-12, atol=0)
    # A second task that uses it counts as it would alone, and through a saved state.
    other = EWC(model, rule=rule, gamma=gamma, curvature="kronecker")
    other.load_state_dict(ewc.state_dict())
    other.merge(F, 0.5)
    weight = {"latest": 1.0, "online": 0.5 * gamma**3 + 0.5, "average": 1.0 / 5.5}[rule]
    torch.testing.assert_close(
        dense(other), weight * block(F["weight:A"], F["weight:G"], True), rtol=1e-12, atol=0
    )


def test_the_same_task_twice_weighs_twice():
    _, ewc, stored = after_tasks(1)
    before = dense(ewc)
    ewc.merge(stored[0][0])
    torch.testing.assert_close(dense(ewc), 2 * before)


def test_the_rule_separate_is_refused_with_its_reason():
    with pytest.raises(ValueError, match=r"'separate' is none for curvature 'kronecker', as a sum"):
        EWC(network(), rule="separate", curvature="kronecker")
    assert EWC(network(), curvature="kronecker").rule == "latest"
    assert EWC(network()).rule == "separate"


@BOTH
def test_memory_does_not_grow_with_the_tasks(eigenvalues):
    one, many = (after_tasks(n, curvature=Kronecker(eigenvalues=eigenvalues))[1] for n in (1, 9))
    assert [b.shape for b in one.buffers()] == [b.shape for b in many.buffers()]


# --- what has factors ---------------------------------------------------------------------------


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50_000, 2)
        self.tied_in, self.tied_out = nn.Linear(2, 2), nn.Linear(2, 2)
        self.tied_out.weight = self.tied_in.weight
        self.norm = nn.LayerNorm(2)
        self.scale = nn.Parameter(torch.ones(2))
        self.wide, self.narrow, self.named = nn.Linear(2, 9), nn.Linear(9, 2), nn.Linear(2, 2)
        self.grouped = nn.Conv1d(2, 2, 1, groups=2)
        self.last = nn.Linear(2, 3)

    def forward(self, ids):
        x = self.norm(self.tied_out(torch.tanh(self.tied_in(self.table(ids).mean(1)))))
        x = self.named(self.narrow(torch.tanh(self.wide(self.scale * x))))
        return self.last(self.grouped(x.unsqueeze(-1)).squeeze(-1))


def test_everything_else_gets_its_exact_diagonal_and_explain_says_why():
    torch.manual_seed(0)
    model, ids = Everything(), torch.randint(100, (6, 3))
    ewc = EWC(model, curvature=Kronecker(limit=8, diagonal="named.*"))
    why = ewc.explain()
    words = {
        "table.weight": "diagonal: an embedding",
        "tied_in.weight": "Kronecker: A 2², G 2²",
        "tied_in.bias": "diagonal: other modules use it than use tied_in.weight",
        "norm.weight": "no weight of a linear layer",
        "scale": "no weight of a linear layer",
        "wide.weight": "9 rows, above the limit 8",
        "named.weight": "named in diagonal",
        "grouped.weight": "groups",
        "last.weight": "Kronecker: A 3², G 3², 0.000216 MB",
        "last.bias": "in the block of last.weight",
    }
    for name, text in words.items():
        assert text in why[name], name
    assert why.keys() == set(ewc.names)
    ewc.consolidate((ids, None))
    diagonal = fisher_diagonal(model, (ids, None))
    for name in ewc.names:
        if "Kronecker" not in why[name]:
            torch.testing.assert_close(ewc.importance[name], diagonal[name])
    assert sum(b.numel() for b in ewc.buffers()) < 3 * sum(p.numel() for p in model.parameters())


def test_which_modules_that_share_a_weight_have_factors():
    pair, output = nn.Linear(3, 3), nn.Linear(3, 9)
    model = nn.Sequential(nn.Embedding(9, 3), pair, nn.Linear(3, 3), output)
    model[0].weight, model[2].weight, model[2].bias = output.weight, pair.weight, pair.bias
    ewc = EWC(model, curvature="kronecker")
    assert ewc.shapes().keys() == {"0.weight", "1.weight:A", "1.weight:G", "3.bias"}
    assert ewc.shapes()["1.weight:A"] == (4, 4)
    assert ewc.explain()["0.weight"] == "diagonal: an embedding, whose inputs are numbers of rows"
    ewc.consolidate((torch.randint(9, (5,)), None))


MADE_ANEW = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "pruned weight": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "pruned bias": lambda layer: prune.random_unstructured(layer, "bias", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("how", MADE_ANEW)
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(1, 2, 3)])
def test_a_weight_that_is_made_of_others_at_each_call_has_the_diagonal_of_these(layer, how):
    torch.manual_seed(0)
    model = nn.Sequential(MADE_ANEW[how](copy.deepcopy(layer).double()), nn.Flatten())
    shape = (6, 4) if isinstance(layer, nn.Linear) else (6, 1, 3, 3)
    x, y = torch.randn(shape, dtype=torch.float64), torch.randint(2, (6,))
    ewc = EWC(model, curvature="kronecker")
    ewc.consolidate((x, y), "empirical")
    parameters, model = dict(model.named_parameters()), model.eval()
    expected = dict.fromkeys(parameters, 0.0)
    for i in range(6):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        for name, g in zip(
            parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True
        ):
            expected[name] = expected[name] + g.square() / 6
    left = [name for name, why in ewc.explain().items() if why.startswith("diagonal")]
    assert left == (["0.bias_orig"] if how == "pruned bias" else list(expected))
    for name in left:
        torch.testing.assert_close(ewc.importance[name], expected[name])


def test_pruned_embeddings_and_attention_have_the_diagonal():
    model = nn.ModuleList([nn.Embedding(5, 4), nn.MultiheadAttention(4, 2)])
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[1], "in_proj_weight", 0.5)
    why = EWC(model, curvature="kronecker").explain()
    for name in ("0.weight_orig", "1.in_proj_weight_orig", "1.in_proj_bias"):
        assert why[name] == "diagonal: no weight of a linear layer or a convolution"


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_attention_of_transformers(layer):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = layer(4, 2, 8, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            decoder = isinstance(self.layer, nn.TransformerDecoderLayer)
            return self.head(self.layer(x, *([x.flip(1)] if decoder else [])).mean(1))

    model = Model()
    ewc = EWC(model, curvature="kronecker")
    ewc.consolidate((torch.randn(6, 5, 4), None))
    why = ewc.explain()
    assert why["layer.self_attn.in_proj_weight"].startswith("Kronecker: A 5², G 12²")
    assert why["layer.self_attn.out_proj.weight"].startswith("Kronecker: A 5², G 4²")
    if layer is nn.TransformerDecoderLayer:
        packed = why["layer.multihead_attn.in_proj_weight"]
        assert packed == "diagonal: packed projections of different inputs"
    before, penalty = flat(model.parameters()), ewc.penalty().item()
    assert penalty == 0.0
    move(model, seed=0)
    for _ in range(3):
        ewc.proximal_step_(1e9)
    # A few directions are not seen by the data; every other one is back.
    assert ewc.penalty().item() < 1e-6 * (flat(model.parameters()) - before).square().sum()


def test_include_exclude_and_frozen_biases():
    model = network()
    assert EWC(model, include="*.weight", curvature="kronecker").shapes() == {
        "0.weight:A": (3, 3),
        "0.weight:G": (4, 4),
        "2.weight:A": (4, 4),
        "2.weight:G": (2, 2),
    }
    assert EWC(model, exclude="0.weight", curvature="kronecker").shapes() == {
        "0.bias": (4,),
        "2.weight:A": (5, 5),
        "2.weight:G": (2, 2),
    }
    model[0].bias.requires_grad_(False)
    ewc = EWC(model, lam=1e6, include="0.*", curvature="kronecker")
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ewc.consolidate((x, None))
    before = copy.deepcopy(model.state_dict())
    move(model, seed=3)
    bias, head = model[0].bias.clone(), model[2].weight.clone()
    for _ in range(9):
        ewc.proximal_step_(1.0)
    torch.testing.assert_close(model[0].weight.detach(), before["0.weight"], rtol=0, atol=1e-3)
    assert torch.equal(model[0].bias, bias)
    assert torch.equal(model[2].weight, head)


@pytest.mark.parametrize("fault", ["missing", "shape", "nan", "asymmetric"])
@pytest.mark.parametrize("kind", ["G", "UG", "E"])
def test_bad_factors_are_refused_and_change_nothing(fault, kind):
    name, curvature = f"5.weight:{kind}", Kronecker(eigenvalues="exact")
    _, ewc, _ = after_tasks(1, mixed(), curvature=curvature)
    F = random_factors(ewc.shapes(), seed=5)
    bad = F.pop(name) if fault == "missing" else F[name]
    if fault == "shape":
        F[name] = bad[:1]
    elif fault == "nan":
        bad[0, 0] = torch.nan
    elif fault == "asymmetric":  # or no basis, or negative
        bad[0, 1] -= 2
    before = copy.deepcopy(ewc.state_dict())
    with pytest.raises(ValueError, match=name):
        ewc.merge(F)
    after = ewc.state_dict()
    assert before["_extra_state"] == after["_extra_state"]
    assert all(torch.equal(before[k], after[k]) for k in before if k != "_extra_state")


@pytest.mark.parametrize("options", [{"limit": 0}, {"iterations": 2.5}, {"eigenvalues": "all"}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be (a whole number|one of)"):
        Kronecker(**options)


def test_an_unknown_curvature_is_refused():
    with pytest.raises(ValueError, match="curvature must be one of diagonal, kronecker, identity"):
        EWC(network(), curvature="full")


def test_the_curvature_identity_is_l2():
    model = network()
    l2, ewc = L2(model, 2.0), EWC(model, 2.0, curvature="identity")
    assert (l2.rule, l2.curvature) == (ewc.rule, ewc.curvature) == ("average", "identity")
    for each in (l2, ewc):
        each.consolidate(None)
    move(model, seed=1)
    assert ewc.penalty().item() == l2.penalty().item() > 0
    ewc.load_state_dict(l2.state_dict())


# --- state --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "gamma"), [("latest", 1.0), ("online", 0.6), ("average", 1.0)])
@BOTH
def test_the_state_restores_and_goes_on_the_same(rule, gamma, eigenvalues):
    curvature = Kronecker(eigenvalues=eigenvalues)
    model, ewc, _ = after_tasks(2, rule=rule, gamma=gamma, curvature=curvature)
    twin = copy.deepcopy(model)
    restored = EWC(twin, rule=rule, curvature=curvature)
    restored.load_state_dict(ewc.state_dict())
    for m, e in ((model, ewc), (twin, restored)):
        e.merge(random_factors(e.shapes(), seed=50))
        move(m, seed=60)
        e.proximal_step_(0.1)
    assert restored.penalty().item() == ewc.penalty().item()


def test_a_state_of_another_curvature_is_refused():
    state = after_tasks(1)[1].state_dict()
    for other in ("diagonal", "identity"):
        with pytest.raises(ValueError, match="with curvature='kronecker'"):
            EWC(network(), rule="latest", curvature=other).load_state_dict(state)
    diagonal = EWC(network(), rule="latest").state_dict()
    with pytest.raises(ValueError, match="with curvature='diagonal'"):
        EWC(network(), curvature="kronecker").load_state_dict(diagonal)


@BOTH
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_other_eigenvalues_is_refused(eigenvalues, strict):
    state = after_tasks(1, curvature=Kronecker(eigenvalues=eigenvalues))[1].state_dict()
    other = Kronecker(eigenvalues="exact" if eigenvalues == "product" else "product")
    with pytest.raises(ValueError, match=f"with eigenvalues='{eigenvalues}'"):
        EWC(network(), curvature=other).load_state_dict(state, strict=strict)


def test_a_layer_that_joins_later_has_its_own_count_of_tasks():
    model, ewc, _ = after_tasks(2)
    model[2] = nn.Linear(4, 3).double()
    fresh = EWC(model, curvature="kronecker")
    old = {k: v for k, v in ewc.state_dict().items() if "2/" not in k}
    extra = old["_extra_state"]
    for part in ("weight_by_layer", "met_by_layer", "strength_by_layer"):
        del extra[part]["2.weight"]
    fresh.load_state_dict(old, strict=False)
    F = random_factors(fresh.shapes(), seed=3)
    fresh.merge(F)
    expected = block(F["2.weight:A"], F["2.weight:G"], True)
    torch.testing.assert_close(dense(fresh)[16:, 16:], expected)


@BOTH
def test_a_head_grows_and_its_new_rows_are_free(eigenvalues):
    model, ewc, _ = after_tasks(1, lam=1e6, curvature=Kronecker(eigenvalues=eigenvalues))
    old = model[2]
    model[2] = nn.Linear(4, 3).double()
    with torch.no_grad():
        model[2].weight[:2], model[2].bias[:2] = old.weight, old.bias
    ewc.grow_()
    before = model[2].weight[2].detach().clone()
    for _ in range(5):
        ewc.proximal_step_(1.0)
    assert torch.equal(model[2].weight[2], before)
    torch.testing.assert_close(
        model[2].weight[:2].detach(), ewc.anchor["2.weight"][:2], rtol=0, atol=1e-3
    )
    old = dense(ewc).trace()
    F = random_factors(ewc.shapes(), seed=1)
    ewc.merge(F)
    if eigenvalues == "exact":
        torch.testing.assert_close(
            dense(ewc).trace(), old + F["0.weight:E"].sum() + F["2.weight:E"].sum()
        )


@BOTH
def test_steps_see_what_is_changed_in_place(eigenvalues):
    curvature = Kronecker(eigenvalues=eigenvalues)
    model, ewc, _ = after_tasks(1, lam=3.0, curvature=curvature)
    ewc.proximal_step_(0.1)
    for key, buffer in ewc.state_dict().items():
        if key.startswith(("A:", "G:", "E:", "anchor:")):
            buffer.mul_(2)
    other = copy.deepcopy((model, ewc))
    ewc.proximal_step_(0.1)
    fresh = EWC(other[0], curvature=curvature)
    fresh.load_state_dict(other[1].state_dict())
    fresh.proximal_step_(0.1)
    assert torch.equal(flat(model.parameters()), flat(other[0].parameters()))


@BOTH
def test_reset_forgets(eigenvalues):
    model, ewc, _ = after_tasks(2, curvature=Kronecker(eigenvalues=eigenvalues))
    ewc.reset()
    assert ewc.penalty().item() == 0
    F = random_factors(ewc.shapes(), seed=3)
    ewc.merge(F)
    fresh = EWC(model, curvature=Kronecker(eigenvalues=eigenvalues))
    fresh.merge(F)
    assert torch.equal(dense(ewc), dense(fresh))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BOTH
def test_a_half_precision_model_keeps_factors_in_float32(dtype, eigenvalues):
    curvature = Kronecker(eigenvalues=eigenvalues)
    model = network(torch.float32)
    x = torch.randn(20, 3)
    wide = EWC(copy.deepcopy(model), lam=10.0, curvature=curvature)
    half = EWC(model.to(dtype), lam=10.0, curvature=curvature)
    wide.consolidate((x, None))
    half.consolidate((x.to(dtype), None))
    assert {b.dtype for b in half.buffers()} == {torch.float32}
    for ewc in (wide, half):
        move(ewc.model, seed=1)
    assert half.penalty().item() == pytest.approx(wide.penalty().item(), rel=0.05)
    for ewc in (wide, half):
        ewc.add_gradient_()
        ewc.proximal_step_(0.3)
        assert all(p.isfinite().all() for p in ewc.model.parameters())
    for p, q in zip(wide.model.parameters(), half.model.parameters(), strict=True):
        torch.testing.assert_close(p, q.float(), rtol=0.05, atol=0.05)
        torch.testing.assert_close(p.grad, q.grad.float(), rtol=0.1, atol=0.1)


def test_under_autocast_factors_are_measured_and_used_in_full_precision():
    model, x = network(torch.float32), torch.randn(40, 3)
    ewc, plain = (EWC(model, lam=3.0, curvature="kronecker") for _ in range(2))
    plain.consolidate((x, None))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ewc.consolidate((x, None))
    for name, F in plain.stored().items():
        assert ewc.stored()[name].dtype == torch.float32
        # Inputs and gradients are those of the model under autocast.
        torch.testing.assert_close(ewc.stored()[name], F, rtol=0.05, atol=0.02)
    move(model, seed=3)
    penalty = plain.penalty()
    gradients = torch.autograd.grad(penalty, list(model.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plain.penalty()
    torch.testing.assert_close(inside, penalty, rtol=1e-6, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(inside, list(model.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    copied = copy.deepcopy(model)
    plain.proximal_step_(0.1)
    expected = [p.detach().clone() for p in model.parameters()]
    model.load_state_dict(copied.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain.proximal_step_(0.1)
    for ours, theirs in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-5, atol=1e-6)


# --- optimizers ---------------------------------------------------------------------------------


class Problem:
    """A linear layer, its Kronecker EWC, and a loss ½(θ − t)ᵀH(θ − t) with a known minimum."""

    def __init__(self, lam: float, **options) -> None:
        g = torch.Generator().manual_seed(1)
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2).double()
        self.ewc = EWC(self.model, lam, curvature=Kronecker(**options))
        self.ewc.merge(random_factors(self.ewc.shapes(), seed=0))
        mu, S = self.flat(), dense(self.ewc)
        root = torch.randn(8, 8, generator=g, dtype=torch.float64)
        self.H = torch.eye(8, dtype=torch.float64) + 0.1 * (root + root.T)
        self.t = torch.randn(8, generator=g, dtype=torch.float64)
        self.minimum = torch.linalg.solve(self.H + lam * S, self.H @ self.t + lam * S @ mu.detach())

    def flat(self) -> torch.Tensor:
        return torch.cat([self.model.weight.flatten(), self.model.bias])

    def backward(self) -> None:
        """Set the gradients of the loss."""
        gradient = self.H @ (self.flat().detach() - self.t)
        self.model.weight.grad, self.model.bias.grad = gradient[:6].reshape(2, 3), gradient[6:]

    def error(self) -> float:
        return (self.flat() - self.minimum).abs().max().item()

    def descend(self, optimizer, steps: int = 500) -> None:
        falling = optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.96 ** max(0, i - steps // 2))
        for _ in range(steps):
            self.backward()
            optimizer.step()
            falling.step()


def groups(problem: Problem, lr: float) -> list[dict]:
    return [{"params": [problem.model.weight], "lr": lr},
            {"params": [problem.model.bias], "lr": 0.3 * lr}]  # fmt: skip


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p.model.parameters(), lr=0.1),
    "momentum": lambda p: optim.SGD(p.model.parameters(), lr=0.02, momentum=0.9),
    "two rates": lambda p: optim.SGD(groups(p, 0.1)),
    "Adam": lambda p: optim.Adam(p.model.parameters(), lr=0.05),
    "RMSprop": lambda p: optim.RMSprop(p.model.parameters(), lr=0.02),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("lam", [0.5, 1e8])
@BOTH
def test_training_ends_where_loss_plus_penalty_is_least(name, lam, eigenvalues):
    problem = Problem(lam, eigenvalues=eigenvalues)
    optimizer = OPTIMIZERS[name](problem)
    problem.ewc.attach(optimizer)
    problem.descend(optimizer)
    assert problem.error() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two rates", "Adam"])
@pytest.mark.parametrize("iterations", [1, 2])
def test_even_one_iteration_rests_at_the_minimum(name, iterations):
    """The fixed points do not depend on how well the subproblem is solved."""
    problem = Problem(2.0, iterations=iterations)
    optimizer = OPTIMIZERS[name](problem)
    problem.ewc.attach(optimizer, every=1)
    problem.descend(optimizer, 600)
    assert problem.error() < 1e-4


@BOTH
def test_the_step_in_a_metric_of_its_own_solves_the_dense_system(eigenvalues):
    problem = Problem(2.0, eigenvalues=eigenvalues)
    model, ewc = problem.model, problem.ewc
    S, mu = dense(ewc), problem.flat().detach()
    move(model, seed=2)
    scale = {"weight": torch.rand(2, 3).double() + 0.1, "bias": torch.rand(2).double() + 0.1}
    M = flat(scale.values()).diag() / 0.3
    before = problem.flat().detach()
    ewc.proximal_step_(0.3, scale)
    expected = torch.linalg.solve(M + 2 * S, M @ before + 2 * S @ mu)
    torch.testing.assert_close(problem.flat().detach(), expected, rtol=1e-6, atol=1e-6)


def test_what_has_no_rate_stays_where_it_is():
    problem = Problem(2.0)
    S, mu = dense(problem.ewc), problem.flat().detach()
    move(problem.model, seed=2)
    before = problem.flat().detach()
    problem.ewc.proximal_step_({"weight": 0.3})
    after = problem.flat().detach()
    assert torch.equal(after[6:], before[6:])
    # The weight's minimum, the bias being given.
    right = before[:6] / 0.3 + 2 * (S @ mu)[:6] - 2 * S[:6, 6:] @ before[6:]
    identity = torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(identity / 0.3 + 2 * S[:6, :6], right)
    torch.testing.assert_close(after[:6], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lam", [1.0, 1e6, 1e12])
def test_each_iteration_lowers_the_quadratic(lam):
    K = lam * block(*(random_factors({"A:A": (4, 4), "G:G": (2, 2)}, 0)[k] for k in ("A:A", "G:G")),
                    bias=False)  # fmt: skip
    g = torch.Generator().manual_seed(0)
    now, start = torch.randn(2, 2, 4, generator=g, dtype=torch.float64)
    M = 10 ** (4 * torch.rand(2, 4, generator=g, dtype=torch.float64) - 2)

    def value(x: torch.Tensor) -> float:
        return (0.5 * x.flatten() @ K @ x.flatten() + 0.5 * (M * (x - now) ** 2).sum()).item()

    def product(x: torch.Tensor) -> torch.Tensor:
        return (K @ x.flatten()).reshape(x.shape)

    diagonal = K.diagonal().reshape(2, 4)
    values = [value(start)]
    values += [value(solve(product, diagonal, M, now, start, n)) for n in range(1, 9)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(values))
    assert values[-1] < 0.9 * values[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SGD", "momentum", "Adam"])
@pytest.mark.parametrize("lam", [2.0, 1e4])
def test_every_few_steps_ends_where_every_step_does(name, lam):
    """Without the force between them, the weights would rest off the minimum (the last test)."""
    problem = Problem(lam)
    parameters = problem.model.parameters()
    optimizer = {
        "SGD": lambda: optim.SGD(parameters, lr=0.1),
        "momentum": lambda: optim.SGD(parameters, lr=0.02, momentum=0.8),
        "Adam": lambda: optim.Adam(parameters, lr=0.05, betas=(0.8, 0.95)),
    }[name]()
    with problem.ewc.attach(optimizer, every=7):
        problem.descend(optimizer, 1500)
    assert problem.error() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, 5, 30])
def test_the_force_is_stable_wherever_gradient_descent_is(every):
    """Brute force: the map of one period, for random curvatures of loss and penalty."""
    g = torch.Generator().manual_seed(0)
    for trial in range(20):
        roots = torch.randn(2, 4, 4, generator=g, dtype=torch.float64)
        H, S = roots @ roots.mT
        H *= 1.9 / torch.linalg.eigvalsh(H)[-1]
        S *= 10.0 ** (trial % 10 - 2)
        model = nn.Linear(4, 1, bias=False).double()
        ewc = EWC(model, curvature=Kronecker())
        ewc.merge({"weight:A": S, "weight:G": torch.ones(1, 1)}, at={"weight": torch.zeros(1, 4)})
        optimizer = optim.SGD(model.parameters(), lr=1.0)
        handle = ewc.attach(optimizer, every)
        columns = []
        for unit in torch.eye(8, dtype=torch.float64):
            # From these weights, with this force: both maps are linear.
            with torch.no_grad():
                model.weight.copy_(unit[None, :4])
            handle._force = {"weight": unit[None, 4:]}
            for _ in range(every):
                model.weight.grad = (model.weight @ H).detach()
                optimizer.step()
            force = handle._force.get("weight", torch.zeros(1, 4))
            columns.append(torch.cat([model.weight.detach(), force], dim=1)[0])
        assert torch.linalg.eigvals(torch.stack(columns)).abs().max() < 1 + 1e-9


def test_every_takes_the_sum_of_the_rates_and_acts_in_between():
    model, ewc, _ = after_tasks(1, lam=3.0)
    start = copy.deepcopy(model)
    twin, twin_ewc = copy.deepcopy((model, ewc))
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    ewc.attach(optimizer, every=3)

    def step(lr: float) -> None:
        optimizer.param_groups[0]["lr"] = lr
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()

    for lr in (0.1, 0.2, 0.3):
        torch.testing.assert_close(flat(model.parameters()), flat(start.parameters()))
        step(lr)
    twin_ewc.proximal_step_(0.1 + 0.2 + 0.3)
    first = flat(twin.parameters())
    torch.testing.assert_close(flat(model.parameters()), first)
    force = (flat(start.parameters()) - first) / 0.6
    step(0.1)
    torch.testing.assert_close(flat(model.parameters()), first - 0.1 * force)


def test_the_end_completes_a_period():
    model, ewc, _ = after_tasks(1, lam=3.0)
    twin, twin_ewc = copy.deepcopy((model, ewc))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with ewc.attach(optimizer, every=10) as handle:
        for _ in range(4):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
    twin_ewc.proximal_step_(0.4)
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()))
    handle.remove()
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()))


@pytest.mark.parametrize("change", ["a task more", "no penalty"])
def test_the_end_moves_nothing_by_a_penalty_that_is_no_more(change):
    problem = Problem(2.0)
    optimizer = optim.SGD(problem.model.parameters(), lr=0.1)
    with problem.ewc.attach(optimizer, every=3):
        for _ in range(5):  # a force is there, and two steps have waited
            problem.backward()
            optimizer.step()
        if change == "no penalty":
            problem.ewc.lam = 0.0
        else:
            problem.ewc.merge(random_factors(problem.ewc.shapes(), seed=5))
        before = problem.flat().detach().clone()
    assert torch.equal(problem.flat(), before)


def test_a_task_within_a_period_begins_another_as_a_new_handle_does():
    """With one iteration the step shows from which weights it started."""
    ends = []
    for new_handle in (False, True):
        problem = Problem(2.0, iterations=1)
        optimizer = optim.Adam(problem.model.parameters(), lr=0.05)
        handle = problem.ewc.attach(optimizer, every=3)
        for step in range(8):
            if step == 4:
                problem.ewc.merge(random_factors(problem.ewc.shapes(), seed=5))
                if new_handle:
                    handle.remove()
                    problem.ewc.attach(optimizer, every=3)
            problem.backward()
            optimizer.step()
        ends.append(problem.flat().detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("factory", [partial(optim.SGD, lr=0.05), partial(optim.Adam, lr=0.05)])
def test_a_handle_goes_on_where_another_was_saved(factory, tmp_path):
    def descend(problem, optimizer, steps):
        for _ in range(steps):
            problem.backward()
            optimizer.step()

    whole = Problem(2.0)
    optimizer = factory(whole.model.parameters())
    whole.ewc.attach(optimizer, every=4)
    descend(whole, optimizer, 30)

    first = Problem(2.0)
    optimizer = factory(first.model.parameters())
    handle = first.ewc.attach(optimizer, every=4)
    descend(first, optimizer, 10)
    torch.save([x.state_dict() for x in (first.model, optimizer, handle)], tmp_path / "it.pt")
    second = Problem(2.0)
    optimizer = factory(second.model.parameters())
    handle = second.ewc.attach(optimizer, every=4)
    for x, state in zip(
        (second.model, optimizer, handle), torch.load(tmp_path / "it.pt"), strict=True
    ):
        x.load_state_dict(state)
    descend(second, optimizer, 20)
    assert torch.equal(whole.flat(), second.flat())


def test_a_handle_goes_on_with_a_shorter_period_than_it_was_saved_with():
    problem = Problem(2.0)
    optimizer = optim.SGD(problem.model.parameters(), lr=0.1)
    handle = problem.ewc.attach(optimizer, every=20)
    for _ in range(15):
        problem.backward()
        optimizer.step()
    state = handle.state_dict()
    handle.remove()
    problem.ewc.attach(optimizer, every=10).load_state_dict(state)
    problem.descend(optimizer, 1500)
    assert problem.error() < 1e-4


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_a_bad_every_is_refused(every):
    model, ewc, _ = after_tasks(1)
    with pytest.raises(ValueError, match="every must be a whole number above zero"):
        ewc.attach(optim.SGD(model.parameters(), lr=0.1), every=every)


# --- around it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_folder", [False, True])
@BOTH
def test_a_task_is_unlearned(in_folder, tmp_path, eigenvalues):
    model, curvature = network(), Kronecker(eigenvalues=eigenvalues)
    ewc = EWC(model, curvature=curvature)
    memory = TaskMemory(ewc, folder=tmp_path if in_folder else None)
    for name in "ABC":
        memory.begin(name)
        move(model, seed=ord(name))
        memory.merge(random_factors(ewc.shapes(), seed=ord(name)))
    memory.forget("B")
    other = EWC(network(), curvature=curvature)
    for name in "AC":
        move(other.model, seed=ord(name))
        other.merge(random_factors(ewc.shapes(), seed=ord(name)))
    torch.testing.assert_close(flat(model.parameters()), flat(other.model.parameters()))
    torch.testing.assert_close(dense(ewc), dense(other))
    torch.testing.assert_close(flat(ewc.anchor.values()), flat(other.anchor.values()))
    if in_folder:
        again = TaskMemory.load(EWC(network(), curvature=curvature), tmp_path)
        assert torch.equal(dense(again.ewc), dense(ewc))


def test_a_grown_head_is_replayed():
    model = network()
    ewc = EWC(model, curvature="kronecker")
    memory = TaskMemory(ewc)
    memory.begin("A")
    first = random_factors(ewc.shapes(), seed=1)
    memory.merge(first)
    model[2].weight = nn.Parameter(
        torch.cat([model[2].weight, torch.zeros(1, 4).double()]).detach()
    )
    model[2].bias = nn.Parameter(torch.cat([model[2].bias, torch.zeros(1).double()]).detach())
    ewc.grow_()
    memory.begin("B")
    memory.merge(random_factors(ewc.shapes(), seed=2))
    memory.forget("B")
    kept = ewc.state_dict()["G:2/weight"]
    torch.testing.assert_close(kept[:2, :2], first["2.weight:G"])
    assert not kept[2].any()
    assert not kept[:, 2].any()
