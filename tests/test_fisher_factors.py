"""Kronecker factors against their definition, sample by sample in float64."""

from __future__ import annotations

import pytest
import torch
from kronecker_oracle import block, dense_fisher, diagonal_in, eigenbasis, eigenblock, loop_factors
from torch import nn

from ewc_tutorial.course.models import mlp
from ewc_tutorial.fisher import fisher_diagonal, fisher_factors


def data(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


class Tokens(nn.Module):
    """A model of sequences: two linear layers at every position, perhaps a mean at the end."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        out = self.last(torch.tanh(self.first(x)))
        return out.mean(1) if self.pooled else out


class Twice(nn.Module):
    """One layer that is called twice, and one that is multiplied with outside of its call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.outside = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.layer(torch.tanh(self.layer(x))))
        return nn.functional.linear(x, self.outside.weight, self.outside.bias)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, dilation=2, bias=False),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def assert_factors(model, found, x, layers, **options):
    for weight, bias in layers.items():
        A, G = loop_factors(model, weight.rpartition(".")[0], x, bias is not None, **options)
        torch.testing.assert_close(found[f"{weight}:A"].double(), A, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[f"{weight}:G"].double(), G, rtol=1e-9, atol=1e-12)
        assert weight not in found
        assert bias not in found


MODELS = {
    "mlp": (lambda: mlp(3, [4], 3), (7, 3), {"0.weight": "0.bias", "2.weight": "2.bias"}),
    "mean of tokens": (
        lambda: Tokens(True),
        (5, 4, 3),
        {"first.weight": "first.bias", "last.weight": "last.bias"},
    ),
    "tokens": (
        lambda: Tokens(False),
        (5, 4, 3),
        {"first.weight": None, "last.weight": "last.bias"},
    ),
    "convolutions": (
        convolutions,
        (5, 2, 7, 7),
        {"0.weight": "0.bias", "2.weight": None, "4.weight": "4.bias"},
    ),
    "called twice": (Twice, (6, 4), {"layer.weight": "layer.bias"}),
    "outside": (Twice, (6, 4), {"outside.weight": "outside.bias"}),
}


@pytest.mark.parametrize("kind", [k for k in MODELS if k != "outside"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_factors_are_those_of_the_loop(kind, batch_size):
    make, shape, layers = MODELS[kind]
    torch.manual_seed(0)
    model, x = make().double(), data(*shape)
    options = {"class_dim": -1} if kind == "tokens" else {}
    found = fisher_factors(model, (x, None), layers, batch_size=batch_size, **options)
    assert_factors(model, found, x, layers)
    diagonal = fisher_diagonal(model, (x, None), **options)
    for name in diagonal.keys() - layers.keys() - {*layers.values()}:
        assert torch.equal(found[name], diagonal[name]) or batch_size
        torch.testing.assert_close(found[name], diagonal[name])


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_factors_of_other_likelihoods(likelihood):
    model, x = mlp(3, [4], 2).double(), data(6, 3)
    layers = {"0.weight": "0.bias", "2.weight": "2.bias"}
    options = {"variance": 0.3} if likelihood == "gaussian" else {}
    found = fisher_factors(model, (x, None), layers, likelihood=likelihood, **options)
    assert_factors(model, found, x, layers, likelihood=likelihood, **options)


def test_the_empirical_estimator_takes_the_labels_of_the_data():
    model, x = mlp(3, [4], 3).double(), data(6, 3)
    y = torch.arange(6) % 3
    layers = {"0.weight": "0.bias", "2.weight": None}
    found = fisher_factors(model, (x, y), layers, "empirical")
    assert_factors(model, found, x, layers, y=y)


def test_sampled_labels_give_the_exact_factors_on_average():
    model, x = mlp(3, [4], 3).double(), data(4, 3)
    layers = {"0.weight": "0.bias"}
    exact = fisher_factors(model, (x, None), layers)["0.weight:G"]
    repeated = x.repeat(4000, 1)
    sampled = fisher_factors(model, (repeated, None), layers, "sampled")["0.weight:G"]
    torch.testing.assert_close(sampled, exact, rtol=0, atol=0.05 * exact.max().item())


class Attention(nn.Module):
    """Self-attention of one head, by ``nn.MultiheadAttention`` or with its layers written out."""

    def __init__(self, packed: bool, batch_first: bool = True) -> None:
        super().__init__()
        self.packed, self.batch_first = packed, batch_first
        if packed:
            self.attention = nn.MultiheadAttention(4, 1, batch_first=batch_first)
        else:
            self.inputs, self.outputs = nn.Linear(4, 12), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        if not self.packed:
            q, k, v = self.inputs(x).chunk(3, -1)
            return self.head(self.outputs((q @ k.mT / 2).softmax(-1) @ v).mean(1))
        x = x if self.batch_first else x.transpose(0, 1)
        out = self.attention(x, x, x, need_weights=False)[0]
        return self.head(out.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_projections_are_one_linear_layer(batch_first, bias):
    torch.manual_seed(0)
    packed, plain = Attention(True, batch_first).double(), Attention(False).double()
    nn.init.normal_(packed.attention.in_proj_bias)
    plain.load_state_dict(dict(zip(plain.state_dict(), packed.state_dict().values(), strict=True)))
    x = data(5, 6, 4)
    pairs = {"attention.in_proj_weight": "inputs", "attention.out_proj.weight": "outputs"}
    layers = {name: name.replace("weight", "bias") if bias else None for name in pairs}
    found = fisher_factors(packed, (x, None), layers)
    for name, layer in pairs.items():
        A, G = loop_factors(plain, layer, x, bias)
        torch.testing.assert_close(found[f"{name}:A"], A)
        torch.testing.assert_close(found[f"{name}:G"], G)


def test_attention_to_another_sequence_is_refused():
    class Cross(Attention):
        def forward(self, x):
            return self.head(self.attention(x, x.flip(1), x.flip(1))[0].mean(1))

    with pytest.raises(ValueError, match=r"'attention.in_proj_weight' has no .*diagonal="):
        fisher_factors(
            Cross(True), (data(4, 3, 4).float(), None), {"attention.in_proj_weight": None}
        )


class Turned(nn.Module):
    """GPT-2's linear layer, with its weight stored as (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


@pytest.mark.parametrize("bias", [True, False])
def test_weights_stored_as_inputs_by_outputs(bias):
    torch.manual_seed(0)
    model = Tokens(True).double()
    turned = Tokens(True).double()
    turned.first, turned.last = Turned(3, 4).double(), Turned(4, 3).double()
    turned.load_state_dict({k: v.T if v.ndim > 1 else v for k, v in model.state_dict().items()})
    x = data(5, 4, 3)
    layers = {f"{n}.weight": f"{n}.bias" if bias else None for n in ("first", "last")}
    found = fisher_factors(turned, (x, None), layers, transposed=list(layers))
    for name in layers:
        A, G = loop_factors(model, name[:-7], x, bias)
        torch.testing.assert_close(found[f"{name}:A"], A)
        torch.testing.assert_close(found[f"{name}:G"], G)
    with pytest.raises(ValueError, match="'first.weight' has no Kronecker factors"):
        fisher_factors(turned, (x, None), layers)


class Shared(nn.Module):
    """A weight that two layers share, each with its own bias, or one layer and two biases."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        if tied:
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
        else:
            self.layer = nn.Linear(4, 4, bias=False)
            self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.tied = tied

    def forward(self, x):
        if self.tied:
            return self.b(torch.tanh(self.a(x)))
        return self.layer(torch.tanh(self.layer(x) + self.a)) + self.b


def test_layers_that_share_a_weight_are_further_positions_of_one():
    torch.manual_seed(0)
    tied, one, x = Shared(True).double(), Shared(False).double(), data(5, 4)
    one.load_state_dict({"layer.weight": tied.a.weight, "a": tied.a.bias, "b": tied.b.bias})
    found = fisher_factors(tied, (x, None), {"a.weight": None})
    A, G = loop_factors(one, "layer", x, bias=False)
    torch.testing.assert_close(found["a.weight:A"], A)
    torch.testing.assert_close(found["a.weight:G"], G)


def test_a_product_outside_of_its_layer_has_factors_as_well():
    torch.manual_seed(0)
    model, x = Twice().double(), data(6, 4)
    layers = MODELS["outside"][2]
    found = fisher_factors(model, (x, None), layers)
    hidden = torch.tanh(model.layer(torch.tanh(model.layer(x)))).detach()
    A, G = loop_factors(nn.Sequential(model.outside), "0", hidden)
    torch.testing.assert_close(found["outside.weight:A"], A)
    torch.testing.assert_close(found["outside.weight:G"], G)


def test_a_weight_that_does_more_than_its_layer_is_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) * self.layer.weight.square().sum()

    with pytest.raises(ValueError, match=r"'layer.weight' has no Kronecker factors.*diagonal="):
        fisher_factors(Odd(), (data(4, 3).float(), None), {"layer.weight": "layer.bias"})


def test_batched_has_no_factors():
    with pytest.raises(ValueError, match="'batched' squares the gradient of a batch"):
        fisher_factors(mlp(3, [], 2), (data(4, 3), torch.zeros(4).long()), {}, "batched")


def test_a_half_precision_model_has_factors_in_float32():
    model = mlp(3, [4], 2, seed=0).bfloat16()
    x = data(6, 3).bfloat16()
    layers = {"0.weight": "0.bias", "2.weight": "2.bias"}
    found = fisher_factors(model, (x, None), layers)
    for weight in layers:
        A, G = loop_factors(model, weight[:1], x)
        assert found[f"{weight}:A"].dtype == torch.float32
        torch.testing.assert_close(found[f"{weight}:A"].double(), A, rtol=0.05, atol=0.02)
        torch.testing.assert_close(found[f"{weight}:G"].double(), G, rtol=0.05, atol=0.02)


def test_names_of_wrapped_models_are_kept():
    model = mlp(3, [], 2)
    wrapped = nn.DataParallel(model)
    found = fisher_factors(
        wrapped, (data(4, 3).float(), None), {"module.0.weight": "module.0.bias"}
    )
    plain = fisher_factors(model, (data(4, 3).float(), None), {"0.weight": "0.bias"})
    assert torch.equal(found["module.0.weight:G"], plain["0.weight:G"])


# --- exact eigenvalues --------------------------------------------------------------------------


def tensors_of(found, weight):
    return [found[f"{weight}:{kind}"] for kind in ("A", "G", "UA", "UG", "E")]


def assert_eigenvalues(model, found, x, layers, rtol=1e-9, **options):
    """E is the diagonal of the true block, in the eigenvectors of A and G."""
    for weight, bias in layers.items():
        names = [weight] if bias is None else [weight, bias]
        F = dense_fisher(model, names, x, **options)
        A, G, UA, UG, E = (t.double() for t in tensors_of(found, weight))
        expected = diagonal_in(eigenbasis(UA, UG, bias is not None), F).reshape(E.shape)
        torch.testing.assert_close(E, expected, rtol=rtol, atol=1e-3 * rtol * E.max().item())
        for factor, U in ((A, UA), (G, UG)):
            used = U.any(0)
            assert torch.linalg.matrix_rank(factor) == used.sum()
            torch.testing.assert_close(U.T @ U, used.double().diag(), rtol=0, atol=1e-5)
            values = U.T @ factor @ U
            torch.testing.assert_close(
                values, values.diagonal().diag(), rtol=0, atol=1e-5 * values.max().item()
            )
            torch.testing.assert_close(
                U @ values @ U.T, factor, rtol=0, atol=1e-5 * values.max().item()
            )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in MODELS if k != "outside"])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_exact_eigenvalues_are_the_diagonal_of_the_true_block(kind, batch_size):
    make, shape, layers = MODELS[kind]
    torch.manual_seed(0)
    model, x = make().double(), data(*shape)
    options = {"class_dim": -1} if kind == "tokens" else {}
    plain = fisher_factors(model, (x, None), layers, batch_size=batch_size, **options)
    found = fisher_factors(
        model, (x, None), layers, batch_size=batch_size, eigenvalues="exact", **options
    )
    assert_eigenvalues(model, found, x, layers)
    assert found.keys() == plain.keys() | {f"{w}:{k}" for w in layers for k in ("UA", "UG", "E")}
    assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_exact_eigenvalues_of_other_likelihoods(likelihood):
    model, x = mlp(3, [4], 2, seed=0).double(), data(6, 3)
    layers = {"0.weight": "0.bias", "2.weight": "2.bias"}
    options = {"variance": 0.3} if likelihood == "gaussian" else {}
    found = fisher_factors(
        model, (x, None), layers, eigenvalues="exact", likelihood=likelihood, **options
    )
    assert_eigenvalues(model, found, x, layers, likelihood=likelihood, **options)


def test_exact_eigenvalues_of_the_labels_of_the_data():
    model, x = mlp(3, [4], 3, seed=0).double(), data(6, 3)
    y = torch.arange(6) % 3
    layers = {"0.weight": "0.bias", "2.weight": None}
    found = fisher_factors(model, (x, y), layers, "empirical", eigenvalues="exact")
    assert_eigenvalues(model, found, x, layers, y=y)


def test_of_equal_eigenvalues_the_basis_that_is_returned_is_the_one_that_was_used():
    """Inputs ± each axis: A is a multiple of the identity, and any basis is one of its own."""
    model, x = nn.Linear(4, 3, bias=False).double(), torch.eye(4, dtype=torch.float64)
    x = torch.cat([x, -x])
    found = fisher_factors(model, (x, None), {"weight": None}, eigenvalues="exact")
    assert_eigenvalues(model, found, x, {"weight": None})


@pytest.mark.parametrize("batch_size", [None, 3])
def test_both_passes_take_the_same_samples_and_labels(batch_size):
    """At one position the trace of a block is the same in every basis: that of the diagonal."""
    model, x = mlp(3, [4], 3, seed=0).double(), data(40, 3)
    layers = {"0.weight": "0.bias", "2.weight": "2.bias"}
    options = {"estimator": "sampled", "n_samples": 17, "batch_size": batch_size}
    diagonal = fisher_diagonal(model, (x, None), generator=5, **options)
    generator, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    options["eigenvalues"] = "exact"
    found = fisher_factors(model, (x, None), layers, generator=generator, **options)
    for weight, bias in layers.items():
        trace = diagonal[weight].sum() + diagonal[bias].sum()
        torch.testing.assert_close(found[f"{weight}:E"].sum(), trace)
    # A generator goes on from where one pass would have left it.
    fisher_diagonal(
        model, (x, None), "sampled", n_samples=17, batch_size=batch_size, generator=other
    )
    assert torch.equal(generator.get_state(), other.get_state())


def test_data_that_can_be_read_once_is_enough():
    model, x = mlp(3, [4], 3, seed=0).double(), data(20, 3)
    options = {"layers": {"0.weight": "0.bias"}, "estimator": "sampled", "eigenvalues": "exact"}
    once = ((part, None) for part in x.split(6))
    found = fisher_factors(model, once, n_samples=15, **options)
    expected = fisher_factors(model, (x[:15], None), **options)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("seed", range(12))
def test_exact_eigenvalues_are_never_further_from_the_true_block(seed):
    """In the Frobenius norm (George et al. 2018, section 3.2), whatever the model and the data."""
    g = torch.Generator().manual_seed(seed)
    inputs, hidden, classes = (int(torch.randint(2, 5, (1,), generator=g)) for _ in range(3))
    tokens = seed % 3 == 2
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()
    shape = (4, 3, inputs) if tokens else (4, inputs)
    x = 2 * torch.randn(shape, generator=g, dtype=torch.float64)
    layers = {"0.weight": "0.bias" if seed % 2 else None, "2.weight": "2.bias"}
    options = {"class_dim": -1} if tokens else {}
    found = fisher_factors(model, (x, None), layers, eigenvalues="exact", **options)
    for weight, bias in layers.items():
        F = dense_fisher(model, [weight] if bias is None else [weight, bias], x)
        A, G, UA, UG, E = tensors_of(found, weight)
        product = (F - block(A, G, bias is not None)).norm()
        exact = (F - eigenblock(UA, UG, E, bias is not None)).norm()
        assert exact <= product * (1 + 1e-12)
    assert exact < product


def test_exact_eigenvalues_of_a_half_precision_model_are_in_float32():
    model, x = mlp(3, [4], 2, seed=0).bfloat16(), data(6, 3).bfloat16()
    layers = {"0.weight": "0.bias", "2.weight": "2.bias"}
    found = fisher_factors(model, (x, None), layers, eigenvalues="exact")
    assert {value.dtype for value in found.values()} == {torch.float32}
    for weight, bias in layers.items():
        F = dense_fisher(model, [weight, bias], x)
        _, _, UA, UG, E = tensors_of(found, weight)
        expected = diagonal_in(eigenbasis(UA, UG, True), F).reshape(E.shape)
        torch.testing.assert_close(E.double(), expected, rtol=0.05, atol=0.02 * E.max().item())


def test_unknown_eigenvalues_are_refused():
    with pytest.raises(ValueError, match="eigenvalues must be one of product, exact, not 'right'"):
        fisher_factors(mlp(3, [], 2), (data(4, 3), None), {}, eigenvalues="right")
