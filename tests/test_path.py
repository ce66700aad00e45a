"""λ after training, against dense solutions and against training at that λ."""

import math

import pytest
import torch
from torch import nn

from ewc_tutorial import EWC, L2, between
from ewc_tutorial.curvature import Kronecker


def regression(seed=0, n=(40, 25), features=3):
    """Two least-squares tasks; one feature of the first is constantly zero."""
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for count in n:
        x = torch.randn(count, features, generator=generator, dtype=torch.float64)
        x = x @ torch.randn(features, features, generator=generator, dtype=torch.float64)
        y = x @ torch.randn(features, 1, generator=generator, dtype=torch.float64) + 0.3
        y = y + torch.randn(count, 1, generator=generator, dtype=torch.float64)
        tasks.append((x, y))
    return tasks


def optimum(model, tasks):
    """Put the least-squares solution of all tasks together into a linear model."""
    x, y = (torch.cat(parts) for parts in zip(*tasks, strict=True))
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    found = torch.linalg.lstsq(x, y).solution.T
    with torch.no_grad():
        model.weight.copy_(found[:, :-1])
        model.bias.copy_(found[:, -1])
    return found


def measured(ewc, task):
    return ewc.measure(task, likelihood="gaussian")


def end_points(curvature, tasks):
    model = nn.Linear(3, 1).double()
    ewc = EWC(model, curvature=curvature)
    optimum(model, tasks[:1])
    ewc.merge(measured(ewc, tasks[0]))
    optimum(model, tasks[1:])
    return model, ewc


def test_of_quadratic_losses_the_path_holds_the_joint_optimum_at_bayes_lambda():
    tasks = regression()
    model, ewc = end_points("kronecker", tasks)  # of one output the product is the whole matrix
    path = ewc.path(measured(ewc, tasks[1]), damping=0)
    path.go_(40 / 25)
    found = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    joint = optimum(nn.Linear(3, 1).double(), tasks)
    assert torch.allclose(found, joint, rtol=1e-9)


@pytest.mark.parametrize("lam", [0.1, 3.0])
@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_a_point_is_where_training_at_that_lambda_ends(curvature, lam):
    tasks = regression(1)
    if curvature == "diagonal":  # of independent features, so that the new loss is the parabola
        tasks = [(torch.linalg.qr(x - x.mean(0))[0] * len(x) ** 0.5, y) for x, y in tasks]
    model, ewc = end_points(curvature, tasks)
    wanted = ewc.path(measured(ewc, tasks[1]), damping=0).at(lam)
    ewc.lam = lam
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (model(tasks[1][0]) - tasks[1][1]).square().mean() + ewc.penalty()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    for name, parameter in model.named_parameters():
        assert torch.allclose(wanted[name], parameter, rtol=1e-5, atol=1e-7)


def network(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    data = []
    for _ in range(3):
        x = torch.randn(9, 4, dtype=torch.float64)
        x[:, 0] = 0  # a pixel that is always black
        data.append((x, torch.randint(2, (9,))))
    return model, data


def dense(tensors, names, shapes):
    """The whole matrix that measured tensors stand for, over the parameters in a row."""
    sizes = [math.prod(shapes[name]) for name in names]
    at = dict(zip(names, torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False))
    whole = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    for name in names:
        if f"{name}:A" in tensors:
            A, G = tensors[f"{name}:A"].double(), tensors[f"{name}:G"].double()
            out, inputs = shapes[name]
            bias = name.replace("weight", "bias")
            rows = [
                at[name] + o * inputs + i if i < inputs else at[bias] + o
                for o in range(out)
                for i in range(inputs + 1)
            ]
            whole[torch.tensor(rows)[:, None], torch.tensor(rows)] = torch.kron(G, A)
        elif name in tensors:
            rows = torch.arange(at[name], at[name] + math.prod(shapes[name]))
            whole[rows, rows] = tensors[name].double().flatten()
    return whole


def stiffened(tensors, damping):
    """Each tensor with its mean in every direction, a factor with the root of the share."""
    found = {}
    for name, F in tensors.items():
        if name.endswith((":A", ":G")):
            found[name] = F + damping**0.5 * F.trace() / len(F) * torch.eye(len(F))
        else:
            found[name] = F + damping * F.mean()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("lam", [1e-6, 1.0, 50.0, 1e8])
@pytest.mark.parametrize("curvature", ["diagonal", "kronecker", "identity"])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_a_point_is_the_minimum_of_the_dense_quadratics(curvature, lam, estimator, damping):
    model, (first, second, new) = network(0)
    ewc = EWC(model, curvature=curvature)
    for task in (first, second):
        with torch.no_grad():
            [p.add_(torch.randn_like(p)) for p in model.parameters()]
        ewc.consolidate(task, estimator)
    with torch.no_grad():
        [p.add_(torch.randn_like(p)) for p in model.parameters()]
    F = ewc.measure(new, estimator)
    names, shapes = ewc.names, {n: tuple(v.shape) for n, v in ewc.values().items()}

    def row(values):
        return torch.cat([values[n].detach().double().flatten() for n in names])

    S_dense = dense(ewc.stored(), names, shapes)
    F_dense = dense(stiffened(F, damping), names, shapes)
    here, anchor = row(ewc.values()), row(ewc.anchor)
    found = row(ewc.path(F, damping).at(lam))
    pull = lam * S_dense @ (found - anchor) + F_dense @ (found - here)
    size = (lam * S_dense).abs() @ (found - anchor).abs() + F_dense.abs() @ (found - here).abs()
    assert (pull.abs() <= 1e-8 * size.max() + 1e-12).all()
    # What the old tasks do not know stays.
    unknown = S_dense.diagonal() == 0
    assert torch.allclose(found[unknown], here[unknown], rtol=0, atol=1e-12)
    assert unknown.any() == (curvature != "identity")


def test_the_same_minimum_is_found_where_one_task_knows_far_more_than_the_other():
    model, (first, _, new) = network(3)
    ewc = EWC(model, curvature="kronecker")
    ewc.consolidate(first)
    with torch.no_grad():
        [p.add_(torch.randn_like(p)) for p in model.parameters()]
    F = ewc.measure(new)
    wanted = ewc.path(F, damping=0).at(1.0)
    small = {n: 1e-9 * t if n.endswith(":A") or ":" not in n else t for n, t in F.items()}
    for name, value in ewc.path(small, damping=0).at(1e-9).items():
        assert torch.allclose(value, wanted[name], rtol=1e-6, atol=1e-9)


def test_rounding_in_a_direction_that_only_the_new_task_knows_pulls_nothing():
    torch.manual_seed(4)
    axes = torch.linalg.qr(torch.randn(6, 6))[0]
    inside = torch.randn(40, 5) @ axes[:, :5].T  # in single precision, so not quite inside
    new = torch.cat([inside + axes[:, 5], inside - axes[:, 5]])
    model = nn.Linear(6, 3)
    ewc = EWC(model, curvature="kronecker")
    ewc.consolidate((inside, torch.randint(3, (40,))))
    with torch.no_grad():
        [p.add_(torch.randn_like(p)) for p in model.parameters()]
    F = ewc.measure((new, torch.randint(3, (80,))))
    # Both inputs' second moments are diagonal across the last axis, so it is free of the others.
    wanted = model.weight.detach() @ axes[:, 5]
    found = ewc.path(F, damping=0).at(1e12)["weight"] @ axes[:, 5]
    assert torch.allclose(found, wanted, atol=1e-4)


def test_with_l2_it_is_the_straight_line():
    model, (_, _, new) = network(1)
    l2 = L2(model)
    l2.consolidate()
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        [p.add_(torch.randn_like(p)) for p in model.parameters()]
    line = between(old, dict(model.named_parameters()), 1 / (1 + 2.5))
    for name, value in l2.path(l2.measure(new), damping=0).at(2.5).items():
        assert torch.allclose(value, line[name])


def test_the_model_goes_along_and_comes_back():
    model, (first, _, new) = network(2)
    ewc = EWC(model)
    ewc.consolidate(first)
    with torch.no_grad():
        [p.add_(torch.randn_like(p)) for p in model.parameters()]
    end = {n: p.detach().clone() for n, p in model.named_parameters()}
    path = ewc.path(ewc.measure(new))
    path.go_(1e12)
    known = {n: S > 0 for n, S in ewc.importance.items()}
    for name, p in model.named_parameters():
        assert torch.allclose(p[known[name]], ewc.anchor[name][known[name]], atol=1e-6)
    path.go_(0)
    assert all(torch.equal(p, end[n]) for n, p in model.named_parameters())
    scores = {0.0: 1.0, 0.5: 4.0, 1.0: 4.0, 9.0: 2.0}
    tried = iter(scores.values())
    assert path.pick_(scores, lambda: next(tried)) == 0.5
    assert all(torch.equal(p, path.at(0.5)[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker", "compact"])
@pytest.mark.parametrize("then", ["merge", "reset"])
def test_what_comes_later_does_not_change_the_path(curvature, then):
    model, (first, _, new) = network(2)
    ewc = EWC(model, rule="latest", curvature=curvature)
    ewc.consolidate(first)
    with torch.no_grad():
        [p.add_(torch.randn_like(p)) for p in model.parameters()]
    F = ewc.measure(new)
    path, other = ewc.path(F), ewc.path(F)
    expected = [{n: p.clone() for n, p in path.at(lam).items()} for lam in (0.0, 0.7)]
    if then == "merge":
        ewc.merge(F)
    else:
        ewc.reset()
    for lam, points in zip((0.0, 0.7), expected, strict=True):
        for name, point in points.items():
            assert torch.equal(path.at(lam)[name], point)
            path.at(lam)[name].zero_()  # nor does what is done with a point
            assert torch.equal(path.at(lam)[name], point)
            assert torch.equal(other.at(lam)[name], point)


def test_a_score_that_fails_or_forbids_everything_leaves_the_new_weights():
    model, (first, _, new) = network(2)
    ewc = EWC(model)
    ewc.consolidate(first)
    with torch.no_grad():
        [p.add_(1) for p in model.parameters()]
    end = {n: p.detach().clone() for n, p in model.named_parameters()}
    path = ewc.path(ewc.measure(new))
    with pytest.raises(ValueError, match="score must be above minus infinity"):
        path.pick_([0.5, 1.0], lambda: -math.inf)
    for scores in ([0.0], [2.0, 3.0, 0.0]):
        left = iter(scores)
        with pytest.raises(ZeroDivisionError):
            path.pick_([0.5, 1.0, 2.0], lambda left=left: 1 / next(left))
        assert all(torch.equal(p, end[n]) for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="lam must be a finite number"):
        path.pick_([0.5, -1.0], lambda: 1.0)
    assert all(torch.equal(p, end[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("lam", [-1.0, math.inf, math.nan, True, "1"])
def test_a_lambda_must_be_a_finite_number(lam):
    model, (first, _, new) = network(2)
    ewc = EWC(model)
    ewc.consolidate(first)
    with pytest.raises(ValueError, match="lam must be a finite number that is not negative"):
        ewc.path(ewc.measure(new)).at(lam)


@pytest.mark.parametrize("damping", [-1.0, math.nan, math.inf, "1"])
def test_damping_must_be_a_finite_number(damping):
    model, (first, _, _) = network(2)
    ewc = EWC(model)
    ewc.consolidate(first)
    with pytest.raises(ValueError, match="damping must be a finite number that is not negative"):
        ewc.path(ewc.measure(first), damping)


def test_what_has_no_path_says_so():
    model, (first, _, _) = network(2)
    with pytest.raises(ValueError, match="consolidate one first"):
        EWC(model).path({})
    exact = EWC(model, curvature=Kronecker(eigenvalues="exact"))
    exact.consolidate(first)
    with pytest.raises(ValueError, match="Exact eigenvalues"):
        exact.path(exact.measure(first))
    for curvature in ("diagonal", "kronecker"):
        ewc = EWC(model, curvature=curvature)
        ewc.consolidate(first)
        F = ewc.measure(first)
        last = list(F)[-1]
        with pytest.raises(ValueError, match="fisher has no entry"):
            ewc.path({n: t for n, t in F.items() if n != last})
        with pytest.raises(ValueError, match="fisher"):
            ewc.path({n: -t for n, t in F.items()})


def test_the_straight_line():
    old = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3), "h": torch.tensor([1.0]).half()}
    new = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(9), "h": torch.tensor([2.0]).half()}
    found = between(old, new, 0.25)
    assert found["w"].tolist() == [0.25, 2.5]
    assert found["n"] == 3
    assert between(old, new, 0.5)["n"] == 9
    between(old, new, 0.5)["n"].zero_()
    assert new["n"] == 9
    assert found["h"].dtype == torch.float16
    assert torch.equal(between(old, new, 1.0)["w"], new["w"])
    assert torch.equal(between(old, new, 0.0)["w"], old["w"])


def test_the_line_of_complex_weights_is_that_of_their_parts():
    old, new = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    parts = between({"w": old}, {"w": new}, 0.3)["w"]
    whole = between({"w": torch.view_as_complex(old)}, {"w": torch.view_as_complex(new)}, 0.3)["w"]
    torch.testing.assert_close(torch.view_as_real(whole), parts)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, True, None])
def test_the_straight_line_ends_at_both_ends(t):
    with pytest.raises(ValueError, match=r"t must be between 0 \(old\) and 1 \(new\)"):
        between({"w": torch.zeros(1)}, {"w": torch.zeros(1)}, t)


def test_only_weights_of_one_architecture_have_a_line_between():
    with pytest.raises(ValueError, match="'b' is in one only"):
        between({"w": torch.zeros(1)}, {"w": torch.zeros(1), "b": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"shape \(2,\) in old, but \(1,\) in new"):
        between({"w": torch.zeros(2)}, {"w": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"'n' has shape \(2,\) in old, but \(3,\) in new"):
        between({"n": torch.zeros(2).long()}, {"n": torch.zeros(3).long()}, 0.5)
