"""The closed forms, and who gets one: generated networks, and models that are out to deceive."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from fisher_oracle import assert_fisher_close, loop_fisher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from ewc_tutorial.fisher import explain_fisher, fisher_diagonal
from ewc_tutorial.fisher.closed_forms import sums
from ewc_tutorial.fisher.closed_forms.layers import Product, Rows

CLASSES = 3
#: Of the generated normalisations. With PyTorch's default, a normalisation over few values is close
#: to a step function, whose gradient no float32 arithmetic gets right.
EPS = 0.1

some = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
seeds = st.integers(0, 2**16)
estimators = st.sampled_from(["exact", "empirical"])
dtypes = st.sampled_from([torch.float32, torch.float64])
activations = st.sampled_from(
    [nn.Tanh(), nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Dropout(0.4), nn.Identity()]
)


def check(model, x, estimator="exact", dtype=torch.float32, batch_size=4, closed=True):
    """Compare with the loop; with ``closed`` every parameter must have got a closed form."""
    model = model.to(dtype).train()
    x = x.to(dtype) if x.is_floating_point() else x
    y = torch.randint(CLASSES, (len(x),))
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    expected = loop_fisher(model, x, y, estimator)
    assert_fisher_close(fisher_diagonal(model, (x, y), estimator, batch_size=batch_size), expected)
    rules = explain_fisher(model, (x, y), estimator)
    if closed:
        assert all(rule.startswith(("closed form", "zero")) for rule in rules.values()), rules
    return rules


def freeze_some(draw, model):
    parameters = list(model.parameters())
    for parameter in parameters[:-1]:
        parameter.requires_grad_(draw(st.integers(0, 4)) > 0)
    return model


# ---- generated networks


@st.composite
def dense_networks(draw):
    torch.manual_seed(draw(seeds))
    width = draw(st.integers(2, 6))
    layers = [nn.Linear(4, width, bias=draw(st.booleans()))]
    shared = nn.Linear(width, width)
    for _ in range(draw(st.integers(0, 4))):
        layers.append(draw(activations))
        layers.append(
            draw(
                st.sampled_from(
                    [
                        shared,
                        nn.Linear(width, width, bias=draw(st.booleans())),
                        nn.LayerNorm(width, EPS, elementwise_affine=draw(st.booleans())),
                        nn.RMSNorm(width, EPS),
                        nn.BatchNorm1d(width, affine=draw(st.booleans())),
                        nn.GroupNorm(1, width, EPS),
                    ]
                )
            )
        )
    layers.append(nn.Linear(width, CLASSES))
    return freeze_some(draw, nn.Sequential(*layers))


@pytest.mark.slow
@some
@given(dense_networks(), st.integers(1, 7), st.integers(1, 8), estimators, dtypes)
def test_dense_networks(model, n, batch_size, estimator, dtype):
    check(model, torch.randn(n, 4), estimator, dtype, batch_size)


@st.composite
def convolutions(draw, dims, channels, size):
    """A convolution, or one with a normalisation, that leaves at least one position."""
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    out_channels = groups * draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, min(3, size))) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    reach = max(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    same = draw(st.booleans())
    padding = "same" if same else [draw(st.integers((reach > size) * 2, 2)) for _ in range(dims)]
    mode = draw(st.sampled_from(["zeros", "replicate"]))
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        channels,
        out_channels,
        kernel,
        stride=1 if same else [draw(st.integers(1, 2)) for _ in range(dims)],
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    norms = [None, batch_norm(out_channels)]
    if out_channels > 1:  # PyTorch refuses to normalise a single value
        norms.append(nn.GroupNorm(1, out_channels, EPS))
    norm = draw(st.sampled_from(norms))
    return [layer, norm] if norm else [layer], out_channels


@st.composite
def convolutional_networks(draw):
    torch.manual_seed(draw(seeds))
    dims, channels, size = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(3, 5))
    x = torch.randn(draw(st.integers(1, 5)), channels, *[size] * dims)
    layers = []
    shape = x[:1]
    for _ in range(draw(st.integers(1, 2))):
        more, channels = draw(convolutions(dims, channels, min(shape.shape[2:])))
        layers += [*more, draw(activations)]
        shape = nn.Sequential(*layers).eval()(x[:1]).detach()
    layers += [nn.Flatten(), nn.Linear(shape.numel(), CLASSES)]
    return freeze_some(draw, nn.Sequential(*layers)), x


@some
@given(convolutional_networks(), st.integers(1, 6), estimators, dtypes)
def test_convolutional_networks(network, batch_size, estimator, dtype):
    model, x = network
    check(model, x, estimator, dtype, batch_size)


class Attention(nn.Module):
    """Self-attention with separate projections, on (B, T, D)."""

    def __init__(self, width, heads):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).mT.mT for f in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(h.transpose(1, 2).flatten(2))


class SequenceModel(nn.Module):
    """Token and position tables, blocks that may share their weights, and perhaps a tied head."""

    def __init__(self, width, heads, blocks, share, tie, position):
        super().__init__()
        self.tokens = nn.Embedding(CLASSES, width, padding_idx=0)
        self.position = position
        if position == "table":
            self.places = nn.Embedding(9, width)
        elif position == "parameter":
            self.places = nn.Parameter(torch.randn(1, 9, width))
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.scale = nn.Parameter(torch.rand(width))
        block = [
            nn.LayerNorm(width, EPS),
            Attention(width, heads),
            nn.Linear(width, width),
            nn.ReLU(),
        ]
        self.blocks = nn.ModuleList(
            nn.Sequential(*block)
            if share or i == 0
            else nn.Sequential(
                nn.LayerNorm(width, EPS), nn.Linear(width, width), nn.ReLU(inplace=True)
            )
            for i in range(blocks)
        )
        self.head = nn.Linear(width, CLASSES, bias=False)
        if tie:
            self.head.weight = self.tokens.weight

    def forward(self, ids):
        h = self.tokens(ids)
        if self.position == "table":
            h = h + self.places(torch.arange(ids.shape[1]))
        elif self.position == "parameter":
            h = h + self.places[:, : ids.shape[1]]
        h = torch.cat([self.start.expand(len(h), -1, -1), h], 1)
        for block in self.blocks:
            h = h + self.scale * block(h) if len(self.blocks) == 1 else h + block(h)
        return self.head(h[:, -1])


@st.composite
def sequence_models(draw):
    torch.manual_seed(draw(seeds))
    heads = draw(st.integers(1, 2))
    model = SequenceModel(
        width=heads * draw(st.integers(1, 3)),
        heads=heads,
        blocks=draw(st.integers(0, 2)),
        share=draw(st.booleans()),
        tie=draw(st.booleans()),
        position=draw(st.sampled_from([None, "table", "parameter"])),
    )
    return freeze_some(draw, model)


@pytest.mark.slow
@some
@given(sequence_models(), st.integers(1, 6), st.integers(1, 5), estimators, dtypes)
def test_sequence_models(model, n, length, estimator, dtype):
    x = torch.randint(CLASSES, (n, length))
    check(model, x, estimator, dtype, closed=length != n and length != 3)


# ---- sums


def test_the_orders_of_contraction_agree():
    """(Σ_t g_t ⊗ a_t)², by positions, by pairs of positions, and split over several uses."""
    torch.manual_seed(0)
    a, g = torch.randn(5, 2, 3, 4, dtype=torch.float64), torch.randn(5, 2, 6, 4).double()
    expected = torch.einsum("bgot,bgit->bgoi", g, a).square().sum(0)
    whole = [Product(a, lambda g: g)]
    halves = [Product(a[..., :1], lambda g: g), Product(a[..., 1:], lambda g: g)]
    for parts, gradients in ((whole, [g]), (halves, [g[..., :1], g[..., 1:]])):
        for reducer in (sums.SquaredProducts(parts, 2), sums.PositionPairs(parts)):
            reducer.add(gradients)
            reducer.add([2 * gradient for gradient in gradients])
            torch.testing.assert_close(reducer.result(), 5 * expected)


def test_the_cheaper_order_is_chosen():
    def chosen(positions, passes):
        part = Product(torch.zeros(2, 1, 300, positions), lambda g: g)
        return type(sums.make_reducer([part], torch.Size([40, 300]), passes, 100)).__name__

    assert chosen(positions=1, passes=1) == "SquaredFactors"
    assert chosen(positions=4, passes=99) == chosen(positions=16, passes=999) == "PositionPairs"
    assert chosen(positions=4, passes=1) == chosen(positions=16, passes=20) == "SquaredProducts"
    assert chosen(positions=784, passes=99_999) == "SquaredProducts"  # no room for so many pairs


def test_an_embedding_never_holds_a_table_per_sample():
    """B × V × d would be 80 GB here."""
    ids = torch.arange(200).reshape(10, 20)
    reducer = sums.make_reducer([Rows(ids, lambda g: g)], torch.Size([1_000_000, 2_000]), 1, 2**18)
    reducer.add([torch.ones(10, 20, 2_000)])
    assert len(reducer._squares) == 200


# ---- special uses


class Reused(nn.Module):
    """A recurrent use of one layer, more times than there are passes, and heads without effect."""

    def __init__(self, times):
        super().__init__()
        self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.unused, self.side = nn.Linear(2, 2), nn.Linear(4, 2)
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = torch.tanh(self.cell(x))
            self.side(x)
        return self.head(x)


@pytest.mark.parametrize("times", [2, 12])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_a_module_used_several_times(times, estimator):
    torch.manual_seed(0)
    rules = check(Reused(times), torch.randn(7, 4), estimator)
    assert rules["unused.weight"] == rules["side.bias"] == "zero: no output depends on it"


def test_samples_that_the_model_flattens_into_rows():
    class Flattening(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)
            self.group, self.head = nn.GroupNorm(1, 2), nn.Linear(8, CLASSES)

        def forward(self, x):  # (B, frames, H, W)
            h = self.norm(self.conv(x.flatten(0, 1).unsqueeze(1)))
            h = self.group(F.relu(h, inplace=True))
            return self.head(h.flatten(1)).unflatten(0, (len(x), -1)).mean(1)

    torch.manual_seed(0)
    rules = check(Flattening(), torch.randn(7, 5, 3, 3))
    assert rules["conv.weight"] == "closed form: Conv2d on flattened samples"


def test_activation_checkpoints():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    torch.manual_seed(0)
    check(Checkpointed(), torch.randn(7, 4), closed=False)


# ---- models that must not get a closed form, or not everywhere


class SequenceFirst(nn.Module):
    """Applies a layer to (T, B, D)."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class UsesWeightTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(F.linear(torch.tanh(self.inner(x)), self.inner.weight)).mean(1)


class CallsForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.inner.forward(x)).mean(1))


class Centred(nn.Module):
    """Subtracts the batch mean: what a sample gives depends on its neighbours."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = torch.tanh(self.inner(x.mean(1)))
        return self.head(h - 0.5 * h.mean(0, keepdim=True))


class Branching(nn.Module):
    """Looks at values, which ``torch.func`` cannot follow."""

    def __init__(self):
        super().__init__()
        self.inner, self.head, self.sharp = nn.Linear(5, 4), nn.Linear(4, CLASSES), nn.Linear(4, 4)

    def forward(self, x):
        if len(x) > 1:
            return torch.cat([self.forward(sample) for sample in x.split(1)])
        h = self.inner(x.mean(1))
        return self.head(h if h.sum() > 0 else torch.tanh(self.sharp(h)))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.inner = kind(5, 4, batch_first=True, **options)
        width = options.get("proj_size", 4) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(5, 1, 6, dropout=0.3, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.inner(x).mean(1))


class Doubled(nn.Linear):
    """A subclass that computes something else than its parent."""

    def forward(self, x):
        return 2 * super().forward(x)


def with_head(inner):
    return nn.Sequential(inner, nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES))


def lying_forward():
    layer = nn.Linear(5, 4)
    layer.forward = MethodType(lambda self, x: 3 * F.linear(x, self.weight, self.bias), layer)
    return with_head(layer)


def with_user_hook():
    layer = nn.Linear(5, 4)
    layer.register_forward_hook(lambda module, args, output: output.flip(-1) * 2)
    return with_head(layer)


class LinearSomehow(nn.Module):
    """Multiplies outside of any layer, in one of the ways that people write it."""

    def __init__(self, way):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4))
        self.turned = nn.Parameter(torch.randn(5, 4))
        self.head, self.way = nn.Linear(4, CLASSES), way

    def forward(self, x):
        return self.head(torch.tanh(self.way(self, x)).mean(1))


class Attending(nn.Module):
    """Packed attention to the samples' own positions, or to others."""

    def __init__(self, batch_first=True, others=False, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(5, 1, batch_first=batch_first, **options)
        self.head, self.others, self.batch_first = nn.Linear(5, CLASSES), others, batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = x.flip(-1) if self.others else x
        h = self.inner(x, y, y)[0]
        return self.head(h.mean(1 if self.batch_first else 0))


#: Weights that are multiplied where no layer with a closed form is called.
PRODUCTS = {
    "sequence first": SequenceFirst,
    "a weight used as a function's argument": UsesWeightTwice,
    "forward called directly": CallsForward,
    "packed attention": Packed,
    "attention": Attending,
    "attention, positions first": lambda: Attending(batch_first=False),
    "attention without biases": lambda: Attending(bias=False),
    "RNN": lambda: Recurrent(nn.RNN),
    "GRU": lambda: Recurrent(nn.GRU),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "deep LSTM": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "LSTM with projections": lambda: Recurrent(nn.LSTM, proj_size=3),
    "subclass": lambda: with_head(Doubled(5, 4)),
    "forward replaced": lying_forward,
    "F.linear": lambda: LinearSomehow(lambda m, x: F.linear(x, m.weight, m.bias)),
    "F.linear without bias": lambda: LinearSomehow(lambda m, x: F.linear(x, m.weight)),
    "F.linear on turned positions": lambda: LinearSomehow(
        lambda m, x: F.linear(x.transpose(0, 1), m.weight, m.bias).transpose(0, 1)
    ),
    "x Wᵀ + b": lambda: LinearSomehow(lambda m, x: x @ m.weight.T + m.bias),
    "b + x W": lambda: LinearSomehow(lambda m, x: m.bias + x @ m.turned),
    "addmm": lambda: LinearSomehow(
        lambda m, x: torch.addmm(m.bias, x.flatten(0, 1), m.turned).unflatten(0, x.shape[:2])
    ),
    "a mean of x": lambda: LinearSomehow(
        lambda m, x: F.linear(x.mean(1), m.weight, m.bias).unsqueeze(1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 3, 6])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_outside_of_layers_are_read_from_the_graph(name, length):
    torch.manual_seed(0)
    model, x = PRODUCTS[name](), torch.randn(10, length, 5)
    model(x[:2])
    check(model, x)


@pytest.mark.parametrize("name", ["F.linear", "F.linear on turned positions"])
def test_a_product_seen_at_one_position_is_not_trusted_at_more(name):
    """At one position the order of samples and positions does not show."""
    torch.manual_seed(0)
    model, x = PRODUCTS[name](), torch.randn(12, 6, 5)
    short, long = loop_fisher(model, x[:4, :1]), loop_fisher(model, x[4:])
    expected = {name: (4 * short[name] + 8 * long[name]) / 12 for name in short}
    actual = fisher_diagonal(model, [x[:4, :1], x[4:8], x[8:]])
    assert_fisher_close(actual, expected)


def test_a_gate_that_is_closed_for_the_probe():
    """All readings of a gradient that is zero agree; which is right shows later."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            h = F.linear(x.transpose(0, 1), self.inner.weight, self.inner.bias).transpose(0, 1)
            open_ = (x > 50).any((1, 2)).float()[:, None]
            return self.head(x.mean(1) + open_ * torch.tanh(h).mean(1))

    torch.manual_seed(0)
    x = torch.randn(12, 3, 5)
    x[9:, 0, 0] = 60.0
    check(Gated(), x, closed=False)


FALL_BACKS = {
    "samples mixed": Centred,
    "control flow by values": Branching,
    "attention to others": lambda: Attending(others=True),
    "transposed convolution": lambda: with_head(nn.ConvTranspose1d(6, 4, 2)),
    "weight norm": lambda: with_head(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))),
    "bilinear": lambda: BilinearModel(),
}


class BilinearModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Bilinear(5, 5, CLASSES)

    def forward(self, x):
        return self.inner(x.mean(1), x[:, 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FALL_BACKS)
def test_falls_back_where_a_closed_form_would_be_wrong(name):
    torch.manual_seed(0)
    model, x = FALL_BACKS[name](), torch.randn(10, 6, 5)
    model(x[:2])
    rules = check(model, x, closed=False)
    assert any(not rule.startswith("closed form") for rule in rules.values())


@pytest.mark.parametrize("length", [2, 3, 4, 10])
def test_sequences_first_that_are_as_long_as_probe_or_batch(length):
    torch.manual_seed(0)
    rules = check(SequenceFirst(), torch.randn(10, length, 5))
    assert rules["inner.weight"] == "closed form: matrix product, positions first"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_can_be_copied_afterwards(kind):
    torch.manual_seed(0)
    model, x = Recurrent(kind), torch.randn(4, 6, 5)
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    check(model, x)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == before


def test_modules_that_occur_twice_survive_torch_func():
    """``torch.func.functional_call`` would leave tensors in the place of their parameters."""
    layer = nn.Linear(5, 5)
    model = nn.Sequential(layer, nn.Tanh(), layer, Packed())
    before = dict(model.named_parameters(remove_duplicate=False))
    check(model, torch.randn(4, 6, 5), closed=False)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_hooks_of_the_user_are_part_of_the_model():
    torch.manual_seed(0)
    model, x = with_user_hook(), torch.randn(10, 6, 5)
    model(x[:2])
    check(model, x)


def test_a_use_that_the_probe_did_not_have():
    """The functional use of the weight appears in the fourth sample's batch only."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            h = torch.tanh(self.inner(x))
            if (x > 50).any():
                late = (x > 50).any(-1, keepdim=True)
                h = torch.where(late, F.linear(h, self.inner.weight), h)
            return self.head(h)

    torch.manual_seed(0)
    x = torch.randn(12, 5)
    x[9] = 60.0
    check(Late(), x, batch_size=4, closed=False)


def test_a_table_as_long_as_the_batch():
    """Without samples in it, but with as many rows: read as samples it would go wrong."""
    torch.manual_seed(0)
    model = SequenceModel(4, 1, 1, False, False, "table")
    for length in (2, 3, 4, 8):
        check(model, torch.randint(CLASSES, (9, length)), batch_size=4, closed=False)


def test_batch_norm_without_statistics_is_done_one_by_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(6, 4, 2), nn.BatchNorm1d(4, track_running_stats=False))
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(16, CLASSES))
    check(model, torch.randn(7, 6, 5), closed=False)


def test_batches_of_one_and_then_more():
    """One sample shows no mixing, so the probe is repeated when more come."""
    torch.manual_seed(0)
    model, x = Centred(), torch.randn(7, 4, 5)
    expected = loop_fisher(model, x)
    actual = fisher_diagonal(model, [x[:1], x[1:4], x[4:]])
    assert_fisher_close(actual, expected)


class Segmented(nn.Module):
    """A table entry chosen by a plain number, and a weight shared by two calls."""

    def __init__(self):
        super().__init__()
        self.segment, self.inner = nn.Embedding(3, 5), nn.Linear(5, 5)
        self.scale, self.head = nn.Parameter(torch.rand(5)), nn.Linear(5, CLASSES)

    def forward(self, x):
        h = x + self.segment(torch.tensor(2))
        return self.head(self.scale * torch.tanh(self.inner(torch.tanh(self.inner(h)))))


def test_a_look_up_without_samples():
    torch.manual_seed(0)
    rules = check(Segmented(), torch.randn(7, 5))
    assert rules["segment.weight"] == "closed form: broadcast by Add"
    assert rules["scale"] == "closed form: broadcast by Mul"


@pytest.mark.parametrize("how", ["autocast", "half"])
def test_coarse_numbers_get_the_same_rules(how):
    """Under autocast even where a look without gradients has filled the cache of casts before."""
    torch.manual_seed(0)
    model, x = Segmented(), torch.randn(30, 5)
    expected = loop_fisher(model, x)
    if how == "half":
        actual = fisher_diagonal(model.bfloat16(), (x.bfloat16(), None))
        rules = explain_fisher(model, (x.bfloat16(), None))
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                model(x)
            actual = fisher_diagonal(model, (x, None))
            rules = explain_fisher(model, (x, None))
    assert_fisher_close(actual, expected, rtol=0.1)
    assert all(rule.startswith("closed form") for rule in rules.values()), rules


def test_a_layer_with_another_signature():
    """What calls a layer's replaced ``forward`` with two arguments: a hook takes the wrong one."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)
            self.inner.forward = MethodType(
                lambda layer, gate, x: gate * F.linear(x, layer.weight, layer.bias), self.inner
            )

        def forward(self, x):
            return self.head(self.inner(torch.sigmoid(x), x))

    torch.manual_seed(0)
    rules = check(Gated(), torch.randn(7, 5))
    assert rules["inner.weight"] == "closed form: matrix product"
