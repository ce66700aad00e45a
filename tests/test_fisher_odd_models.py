"""Models as people write them: the Fisher information is right, or refused in a sentence."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from fisher_oracle import assert_fisher_close, loop_fisher
from torch import nn

from ewc_tutorial.fisher import explain_fisher, fisher_diagonal

CLASSES = 4


class Model(nn.Module):
    """Parts by name, and a function of them and the inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def head(width=6):
    return nn.Linear(width, CLASSES)


def number(value):
    return nn.Parameter(torch.tensor(value))


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def data(n=9, *shape):
    return torch.randn(n, *(shape or (6,))), torch.randint(CLASSES, (n,))


def check(model, x, y, truth=None, rtol=None, **options):
    """Compare with the loop over the model, or over another one that must agree with it."""
    for estimator in ("exact", "empirical"):
        expected = loop_fisher(truth or model, x, y, estimator)
        assert_fisher_close(fisher_diagonal(model, (x, y), estimator, **options), expected, rtol)


# ---- parameters


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.head(x) * (F.softplus(m.t) + 1e-4),
        lambda m, x: m.head(x) * (1 + m.t),
        lambda m, x: m.head(x) / (m.t.exp() + m.t),
        lambda m, x: m.head(x) + (2 * m.t + 1) * x[:, :1] * torch.arange(4.0).to(x),
        lambda m, x: m.head(x * m.t + 3 * m.t),
        lambda m, x: m.head(x) * (m.head.weight.norm() + 1),
    ],
)
def test_a_number_that_is_changed_before_it_meets_the_samples(function):
    x, y = data()
    check(Model(function, head=head(), t=number(0.7)), x, y)


def test_a_number_at_the_end_has_a_closed_form():
    x, y = data()
    model = Model(lambda m, x: m.head(x) * (1 + m.t), head=head(), t=number(0.7))
    assert explain_fisher(model, (x, y))["t"] == "closed form: broadcast by Mul"


def test_a_parameter_without_elements():
    x, y = data()
    model = Model(lambda m, x: m.head(x) + m.none.sum(), head=head(), none=nn.Parameter(x[:0]))
    assert fisher_diagonal(model, (x, y))["none"].shape == (0, 6)
    assert_fisher_close(
        {"weight": fisher_diagonal(model, (x, y))["head.weight"]},
        {"weight": loop_fisher(model.head, x, y)["weight"]},
    )


@pytest.mark.parametrize("bag", [False, True])
def test_sparse_tables(bag):
    table = nn.EmbeddingBag(20, 6, sparse=True) if bag else nn.Embedding(20, 6, sparse=True)
    model = Model(lambda m, i: m.head(m.table(i) if bag else m.table(i).sum(1)), table=table)
    model.head = head()
    x, y = torch.randint(20, (9, 5)), torch.randint(CLASSES, (9,))
    check(model, x, y)
    dense = copy.deepcopy(model)
    dense.table.sparse = False
    actual, expected = (fisher_diagonal(m, (x, y), "batched") for m in (model, dense))
    assert_fisher_close(actual, {name: value.double() for name, value in expected.items()})


@pytest.mark.parametrize("hidden", ["list", "closure", "cache"])
def test_parameters_that_are_reached_by_another_way_than_the_module(hidden):
    x, y = data()

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(6, 6), head()
            if hidden == "list":
                self.others = [self.a.weight]
            elif hidden == "closure":
                self.others = (lambda w: lambda: w)(self.a.weight)

        def forward(self, x):
            other = self.others[0] if hidden == "list" else self.others()
            return self.head(torch.tanh(x @ other.softmax(0)) + self.a(x))

    if hidden == "cache":
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), head())
        expected = loop_fisher(model, x, y)
        with nn.utils.parametrize.cached():
            model(x)
            assert_fisher_close(fisher_diagonal(model, (x, y)), expected)
        return
    model = Hidden()
    plain = Model(lambda m, x: m.head(torch.tanh(x @ m.a.weight.softmax(0)) + m.a(x)))
    plain.a, plain.head = model.a, model.head
    check(model, x, y, truth=plain)


def test_hooks_on_a_parameter_that_is_broadcast_do_not_fire():
    x, y = data()
    model = Model(lambda m, x: m.head(torch.tanh(x + 2 * m.shift)), head=head())
    model.shift = nn.Parameter(torch.randn(6))
    handle = model.shift.register_hook(torch.zeros_like)
    plain = Model(model.function, head=model.head, shift=nn.Parameter(model.shift.detach()))
    check(model, x, y, truth=plain)
    model(x).sum().backward()
    assert not model.shift.grad.any()  # the hook is on again
    handle.remove()
    model(x).sum().backward()
    assert model.shift.grad.any()


# ---- PyTorch itself is wrong


class BatchNormByHand(nn.BatchNorm2d):
    def forward(self, x):
        mean, var = (t.view(1, -1, 1, 1) for t in (self.running_mean, self.running_var))
        normalised = (x - mean) / (var + self.eps).sqrt()
        return normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class Hybrid(nn.Module):
    """Convolutions, then tokens: what BatchNorm is wrong for with one sample on a CPU."""

    def __init__(self, stem, norm):
        super().__init__()
        self.stem, self.norm = stem, norm(8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = head(8)

    def forward(self, x):
        tokens = self.norm(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens).mean(1))


class FunctionalBatchNorm(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("stem", "norm"),
    [
        (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d),
        (nn.ConvTranspose2d(3, 8, 2), FunctionalBatchNorm),
    ],
)
def test_batch_norm_before_tokens(stem, norm, n, batch_size):
    x, y = data(n, 3, 6, 6)
    model = Hybrid(stem, norm)
    model.norm.running_var.uniform_(0.5, 1.5)
    by_hand = Hybrid(copy.deepcopy(stem), BatchNormByHand)
    by_hand.load_state_dict(model.state_dict())
    check(model, x, y, truth=by_hand, batch_size=batch_size)


class WrongForOne(torch.autograd.Function):
    """tanh, with a backward pass that is wrong for batches of one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y) * (0.1 if len(g) == 1 else 1)


@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.Bilinear(6, 6, 6)])
def test_an_operation_that_is_wrong_for_batches_of_one(layer):
    inner = (
        (lambda m, x: m.layer(x, x)) if isinstance(layer, nn.Bilinear) else lambda m, x: layer(x)
    )
    model = Model(lambda m, x: m.head(WrongForOne.apply(inner(m, x))), layer=layer, head=head())
    right = Model(lambda m, x: m.head(inner(m, x).tanh()), layer=layer, head=model.head)
    x, y = data(7)
    expected = fisher_diagonal(right, (x, y))
    for size in (1, 3, 7):
        actual = fisher_diagonal(model, (x, y), batch_size=size)
        assert_fisher_close(actual, {name: value.double() for name, value in expected.items()})


# ---- what a few samples do not show


class SmallAttention(nn.Module):
    """Attention whose weights get small gradients beside those of the head."""

    def __init__(self, batch_first):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.batch_first, self.head = batch_first, head()

    def forward(self, x):
        h = x if self.batch_first else x.transpose(0, 1)
        h = self.inner(h, h, h, need_weights=False)[0]
        return self.head(x[:, 0] + 0.02 * h.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast"])
def test_attention_with_small_gradients_in_coarse_numbers(dtype, batch_first):
    x, y = data(8, 12, 6)
    model = SmallAttention(batch_first)
    coarse = dtype != torch.float32
    if dtype == torch.bfloat16:
        model, x = model.bfloat16(), x.bfloat16()
    expected = loop_fisher(model, x, y, "empirical")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        actual = fisher_diagonal(model, (x, y), "empirical")
    for name, value in expected.items():
        error = (actual[name].double() - value).norm() / value.norm()
        assert error < (0.1 if coarse else 1e-5), f"{name}: {error:.2f}"


def time_first(m, x):
    h = torch.tanh(m.a(x.transpose(0, 1).reshape(-1, x.shape[-1])))
    return m.head(h.view(x.shape[1], len(x), -1).mean(0))


def in_batch_attention(m, x):
    h = m.a(x.mean(1))
    return m.head((h @ h.T).softmax(1) @ h)


def experts(m, x):
    """The tokens of one expert, of all samples, go through a layer that sees only them."""
    h = x.transpose(0, 1).flatten(0, 1)
    second = h[:, 0] > 1
    out = torch.zeros(len(h), 6, dtype=h.dtype)
    out = out.index_put((~second,), m.b(h[~second]))
    if second.any():
        out = out.index_put((second,), torch.tanh(m.a(h[second])))
    return m.head(out.view(x.shape[1], len(x), -1).mean(0))


UNSEEN = {
    "time first, on rows": (time_first, torch.zeros(6, 5)),
    "less the mean of the batch": (
        lambda m, x: m.head(torch.tanh(m.a(x.mean(1) - x.mean((0, 1))))),
        torch.ones(6, 5),
    ),
    "attention in the batch": (in_batch_attention, torch.ones(6, 5)),
    "an expert that is not asked": (experts, -torch.ones(6, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.parametrize("batch_size", [None, 6])
def test_data_that_begins_with_equal_samples(name, batch_size):
    function, start = UNSEEN[name]
    x, y = data(24, 6, 5)
    x[:3] = start
    model = Model(function, a=nn.Linear(5, 6), b=nn.Linear(5, 6), head=head())
    check(model, x, y, batch_size=batch_size)


def capacity(m, x):
    """An expert that takes no more than the first five samples of a batch."""
    h = m.a(x)
    taken = (torch.arange(len(x)) < 5).unsqueeze(1)
    return m.head(torch.where(taken, torch.tanh(h), h))


def normalised_by_large_batches(m, x):
    h = m.a(x)
    return m.head(F.batch_norm(h, None, None, training=True) if len(x) >= 8 else h)


@pytest.mark.slow
@pytest.mark.parametrize("function", [capacity, normalised_by_large_batches])
@pytest.mark.parametrize("batch_size", [None, 2, 12])
def test_influence_that_starts_above_the_size_of_the_probe(function, batch_size):
    x, y = data(24)
    check(Model(function, a=nn.Linear(6, 6), head=head()), x, y, batch_size=batch_size)


# ---- models that change


class CachedTable(nn.Module):
    """Keeps a table that it makes of a parameter in evaluation mode, as LeViT does."""

    def __init__(self):
        super().__init__()
        self.bias, self.head, self.table = nn.Parameter(torch.randn(6)), head(), None

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.table = None
        return self

    def forward(self, x):
        if self.training:
            table = self.bias.exp()
        else:
            self.table = table = self.bias.exp() if self.table is None else self.table
        return self.head(torch.tanh(x * table))


@pytest.mark.parametrize("mode", ["train", "eval", "used in eval"])
def test_a_table_that_is_kept_in_evaluation_mode(mode):
    x, y = data()
    model = CachedTable().train()
    expected = loop_fisher(model, x, y)
    if mode != "train":
        model.eval()
    if mode == "used in eval":
        with torch.no_grad():
            model(x)
    assert_fisher_close(fisher_diagonal(model, (x, y)), expected)
    assert model.training == (mode == "train")
    with torch.no_grad():
        model.bias.add_(1)
        torch.testing.assert_close(model.eval()(x), model.train()(x))
    copy.deepcopy(model)  # no table with a graph stays behind


class MergingAdapter(nn.Linear):
    """Adds its low-rank part to the frozen weight in evaluation mode, as loralib does."""

    def __init__(self):
        super().__init__(6, 6)
        self.weight.requires_grad_(False)
        self.down, self.up = (nn.Parameter(torch.randn(6, 2)) for _ in range(2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if self.merged else 1) * self.down @ self.up.T
            self.merged = not mode
        return self

    def forward(self, x):
        h = F.linear(x, self.weight, self.bias)
        return h if self.merged else h + x @ self.up @ self.down.T


@pytest.mark.parametrize("training", [True, False])
def test_adapters_that_merge_themselves(training):
    x, y = data()
    model = nn.Sequential(MergingAdapter(), nn.Tanh(), head())
    plain = copy.deepcopy(model)
    plain[0].train = lambda mode=True: plain[0]  # it never merges
    expected = loop_fisher(plain, x, y)
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_fisher_close(fisher_diagonal(model, (x, y)), expected)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert (model.training, model[0].merged) == (training, not training)


def test_inputs_that_the_model_changes_in_place():
    x, y = data()
    model = Model(lambda m, x: m.head(torch.tanh(m.a(x.mul_(2).add_(1)))), a=nn.Linear(6, 6))
    model.head = head()
    plain = Model(lambda m, x: m.head(torch.tanh(m.a(2 * x + 1))), a=model.a, head=model.head)
    before = x.clone()
    for estimator in ("exact", "empirical", "batched"):
        actual, expected = (fisher_diagonal(m, (x, y), estimator) for m in (model, plain))
        assert_fisher_close(actual, {name: value.double() for name, value in expected.items()})
        assert torch.equal(x, before)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_that_normalises_itself(kind):
    model = Model(lambda m, i: m.head(m.table(i).reshape(len(i), -1, 6).mean(1)))
    model.table, model.head = kind(20, 6, max_norm=1.0), head()
    before = model.table.weight.clone()
    x, y = torch.randint(20, (9, 5)), torch.randint(CLASSES, (9,))
    check(model, x, y)
    assert torch.equal(model.table.weight, before)


# ---- refused


def complex_parameter():
    weight = nn.Parameter(torch.randn(4, dtype=torch.cfloat))
    return Model(lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * m.weight, n=6), weight=weight)


def made_in_inference_mode():
    with torch.inference_mode():
        return head()


REFUSED = {
    "complex": (complex_parameter, TypeError, "'weight' is complex"),
    "scripted": (lambda: torch.jit.script(head()), TypeError, "TorchScript"),
    "traced": (lambda: torch.jit.trace(head(), torch.randn(2, 6)), TypeError, "TorchScript"),
    "scripted part": (
        lambda: nn.Sequential(torch.jit.script(head()), nn.Linear(4, 4)),
        TypeError,
        "0 is TorchScript",
    ),
    "inference": (made_in_inference_mode, ValueError, "'weight' was made under .*inference_mode"),
    "detached": (
        lambda: Model(lambda m, x: m.head(x).detach(), head=head()),
        ValueError,
        r"no trainable parameter: look for detach\(\)",
    ),
    "dropout": (
        lambda: Model(lambda m, x: F.dropout(m.head(x)), head=head()),
        ValueError,
        "different outputs for the same inputs",
    ),
    "batch norm": (
        lambda: nn.Sequential(head(), nn.BatchNorm1d(4, track_running_stats=False)),
        ValueError,
        "track_running_stats=False",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(name):
    make, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        fisher_diagonal(make(), data())


@pytest.mark.parametrize("scale", [1e-4, 3000])
def test_squares_have_room_where_the_parameters_numbers_have_none(scale):
    """Beyond 65504 a float16 is infinite, and below 6e-8 it is zero: springs would be gone."""
    model = nn.Linear(6, CLASSES).half()
    x, y = data()
    F = fisher_diagonal(model, ((scale * x).half(), y), "empirical")["weight"]
    assert F.dtype == torch.float32
    assert F.max() > 65504 if scale > 1 else (F[F > 0] < 6e-8).any()
    wide = copy.deepcopy(model).double()
    expected = fisher_diagonal(wide, ((scale * x).half().double(), y), "empirical")["weight"]
    torch.testing.assert_close(F.double(), expected, rtol=0.05, atol=0)


def test_no_graph_stays_behind():
    """One would hold on to the activations, and to the shape that a parameter had."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    fisher_diagonal(model, (torch.randn(8, 6), None))
    model[0].weight.data = torch.randn(5, 7)  # as resize_token_embeddings does
    x = torch.randn(8, 7)
    assert_fisher_close(fisher_diagonal(model, (x, None)), loop_fisher(model, x))
