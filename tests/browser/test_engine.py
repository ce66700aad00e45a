"""What trains a network in the lab's page, part by part, in a browser, against PyTorch."""

from __future__ import annotations

import pytest
import torch
from fisher_oracle import loop_fisher
from torch.nn import functional
from torch.utils.data import TensorDataset

from ewc_tutorial import fisher_diagonal
from ewc_tutorial.course.explorer.web import engine
from ewc_tutorial.course.models import mlp

# Sizes that the blocks of 2 × 4 in a product divide, and sizes that they do not.
SIZES = ([64, 32, 32, 10], [7, 5, 3], [6, 4])


@pytest.fixture(scope="module")
def js(browser):
    """Return a function that evaluates JavaScript beside the engine: ``js("a => f(a)", a)``."""
    page = browser.new_page()
    page.add_script_tag(content=engine())
    # Numbers go to the page as lists: double precision, which holds float32 exactly.
    page.add_script_tag(
        content="const f32 = list => Float32Array.from(list), lists = all => all.map(a => [...a]);"
    )
    yield page.evaluate
    page.close()


def flat(tensors) -> list[list[float]]:
    return [t.detach().flatten().tolist() for t in tensors]


def data(sizes, n=45, seed=0):
    """Return made-up inputs, some of them zero as in images, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, sizes[0], generator=generator).relu()
    return x, torch.randint(sizes[-1], (n,), generator=generator)


def network(sizes, seed=0):
    return mlp(sizes[0], sizes[1:-1], sizes[-1], seed=seed)


def check(found, wanted, rtol, atol):
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            torch.tensor(mine, dtype=torch.float64),
            theirs.detach().flatten().double(),
            rtol=rtol,
            atol=atol,
        )


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_a_seed_draws_the_weights_and_the_batches_that_it_draws_in_pytorch(js, seed):
    for sizes in SIZES:
        found = js("([s, seed]) => lists(initialParameters(s, seed))", [sizes, seed])
        check(found, network(sizes, seed).parameters(), rtol=0, atol=0)
    generator = torch.Generator().manual_seed(seed)
    wanted = [torch.randperm(n, generator=generator).tolist() for n in (1347, 10, 1)]
    draw = "seed => (r => [1347, 10, 1].map(n => [...r.permutation(n)]))(new Twister(seed))"
    assert js(draw, seed) == wanted


@pytest.mark.parametrize("sizes", SIZES)
def test_the_gradient_is_that_of_autograd_in_double_precision(js, sizes):
    model, (x, y) = network(sizes), data(sizes)
    found = js(
        "([p, s, x, y]) => lists(gradient(p.map(f32), s, f32(x), y, y.length))",
        [flat(model.parameters()), sizes, x.flatten().tolist(), y.tolist()],
    )
    model = model.double()
    functional.cross_entropy(model(x.double()), y).backward()
    check(found, [p.grad for p in model.parameters()], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_fisher_diagonal_is_the_exact_one(js, sizes):
    model, (x, y) = network(sizes), data(sizes, n=130)  # more than one batch of them
    found = js(
        "([p, s, x, n]) => lists(fisherDiagonal(p.map(f32), s, f32(x), n))",
        [flat(model.parameters()), sizes, x.flatten().tolist(), len(x)],
    )
    check(found, loop_fisher(model, x).values(), rtol=1e-5, atol=1e-9)
    check(found, fisher_diagonal(model, TensorDataset(x, y)).values(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_kronecker_factors_are_second_moments_over_images_and_labels(js, sizes):
    model, (x, _) = network(sizes), data(sizes, n=130)
    found = js(
        "([p, s, x, n]) => fisherFactors(p.map(f32), s, f32(x), n).map(f => lists([f.A, f.G]))",
        [flat(model.parameters()), sizes, x.flatten().tolist(), len(x)],
    )
    wanted = factors_one_by_one(model.double(), x.double())
    for mine, theirs in zip(found, wanted, strict=True):
        check(mine, theirs, rtol=1e-5, atol=1e-7)


def factors_one_by_one(model, x):
    """Return A and G of each layer by their definition, in float64."""
    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    sums = [[0.0, 0.0] for _ in linear]
    seen: list = []
    for layer in linear:
        layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    for image in x:
        seen.clear()
        log_p = model(image).log_softmax(-1)
        for l, (a, _) in enumerate(seen):  # noqa: E741
            a = torch.cat([a, a.new_ones(1)])
            sums[l][0] = sums[l][0] + torch.outer(a, a).detach() / len(x)
        for c in range(len(log_p)):
            outputs = [out for _, out in seen]
            for l, g in enumerate(torch.autograd.grad(log_p[c], outputs, retain_graph=True)):  # noqa: E741
                sums[l][1] = sums[l][1] + log_p[c].exp().detach() * torch.outer(g, g) / len(x)
    return sums


def test_eigenvectors_make_the_matrix_again_and_zero_stays_zero(js):
    root = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = root @ root.T  # of rank six
    found = js(
        "m => { const e = eigenvectors(m, 9); return [[...e.values], [...e.U]]; }",
        matrix.flatten().tolist(),
    )
    values, U = torch.tensor(found[0]).double(), torch.tensor(found[1]).double().view(9, 9)
    assert (values == 0).sum() == 3
    torch.testing.assert_close(U * values @ U.T, matrix, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(U.T @ U, torch.eye(9).double(), rtol=0, atol=1e-6)
