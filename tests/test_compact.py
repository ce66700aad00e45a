"""EWC in three bytes per weight against the same quadratic written out in double precision."""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch
from test_fisher_memory import PeakMemory
from torch import nn
from torch.nn import functional

from ewc_tutorial import EWC, diagnose
from ewc_tutorial.course.models import mlp
from ewc_tutorial.curvature import RULES, Compact, compact
from ewc_tutorial.curvature.minifloat import RELATIVE, SMALLEST, numbers, rounded, scale_for

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Odd(nn.Module):
    """Parameters with no dimension, with an empty one, and not contiguous."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.alone = nn.Parameter(torch.tensor(0.3, dtype=dtype))
        self.empty = nn.Parameter(torch.empty(0, 3, dtype=dtype))
        self.turned = nn.Parameter(torch.randn(5, 7, generator=generator()).to(dtype).T)
        self.cube = nn.Parameter(torch.randn(4, 3, 2, generator=generator(1)).to(dtype))


def random_fisher(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Importance over ten orders of magnitude, some of it zero."""
    g, found = generator(seed), {}
    for name, p in model.named_parameters():
        F = 10 ** (10 * torch.rand(p.shape, generator=g) - 8)
        found[name] = F * (torch.rand(p.shape, generator=g) > 0.2)
    return found


def move(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g).to(p))


def after_tasks(model: nn.Module, n: int = 2, **options) -> EWC:
    ewc = EWC(model, **{"lam": 3.0, "curvature": "compact"} | options)
    for task in range(n):
        move(model, 10 + task)
        ewc.merge(random_fisher(model, task), weight=1.0 + task % 2)
    move(model, 99)
    return ewc


def quadratic(ewc: EWC) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return S and μ in double precision, which has none of their rounding."""
    return tuple({n: t.double() for n, t in of.items()} for of in (ewc.importance, ewc.anchor))


# --- numbers in a byte --------------------------------------------------------------------------


def test_a_byte_is_what_its_bits_say():
    codes = torch.arange(248, dtype=torch.uint8)
    for code, value in zip(codes.tolist(), numbers(codes, 0.25).tolist(), strict=True):
        exponent, mantissa = divmod(code, 8)
        h = mantissa / 8 * 2.0**-14 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 15)
        assert value == 0.25 * h


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1.0, 3e38])
def test_the_error_is_bounded(size):
    x = size * 10 ** (-14 * torch.rand(20_000, generator=generator()))
    x[:100], x[100] = 0.0, size
    scale = scale_for(size)
    found = numbers(rounded(x, scale, generator(1)), scale)
    error = (found.double() - x.double()).abs()
    assert (error < torch.maximum(RELATIVE * x.double(), torch.tensor(SMALLEST * size))).all()
    assert not found[:100].any()
    assert (found[x >= 1e-8 * size] > 0).all()
    assert found.isfinite().all()


def test_rounding_is_right_in_the_mean_and_keeps_what_is_rounded():
    x = torch.tensor([1.0, 1.03, 0.3, 1e-3, 3e-9, 2e-10])
    scale, g = scale_for(1.0), generator()
    draws = numbers(rounded(x.repeat(20_000, 1), scale, g), scale).double()
    sem = draws.std(0) / len(draws) ** 0.5
    assert (draws.mean(0) - x.double()).abs().le(4 * sem + 1e-16).all()
    grid = numbers(torch.arange(248, dtype=torch.uint8), 1.0)
    for scale in (scale_for(grid[-1].item()), scale_for(2.0**12), scale_for(2.0**20)):
        kept = grid[(grid >= scale * 2.0**-14) & (grid < scale * 2.0**15)]
        assert len(kept) > 100
        assert torch.equal(numbers(rounded(kept, scale, g), scale), kept)


@pytest.mark.parametrize("rule", RULES)
def test_ten_tasks_add_up_without_bias(rule):
    model = nn.Linear(100, 100, bias=False)
    gamma = 0.8 if rule == "online" else 1.0
    ewc = EWC(model, rule=rule, gamma=gamma, curvature="compact")
    exact = torch.zeros(100, 100, dtype=torch.float64)
    fishers = []
    for task in range(10):
        # Later tasks are so small that rounding to the nearest would drop them.
        F = torch.rand(100, 100, generator=generator(task)) * (1.0 if task == 0 else 0.01)
        fishers.append(F.double())
        exact = gamma * exact + F.double()
        ewc.merge({"weight": F})
    exact = torch.stack(fishers).mean(0) if rule == "average" else exact
    found = ewc.importance["weight"].double()
    assert (found - exact).abs().mean() < 0.1 * exact.mean()
    error = (found - exact).flatten()
    assert abs(error.mean()) < 4 * error.std() / 100
    assert torch.equal(found == 0, exact == 0)


def test_the_first_importance_is_not_lost_under_many_small_ones():
    model = nn.Linear(50, 50, bias=False)
    ewc = EWC(model, curvature="compact")
    for F in [1.0, *[0.01] * 100]:
        ewc.merge({"weight": torch.full((50, 50), F)})
    assert ewc.importance["weight"].mean().item() == pytest.approx(2.0, rel=0.02)


# --- the quadratic ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("piece", [3, 2**18])
def test_penalty_gradient_and_step_are_those_of_what_is_stored(monkeypatch, dtype, piece):
    monkeypatch.setattr(compact, "PIECE", piece)
    model = Odd(dtype)
    ewc = after_tasks(model)
    S, mu = quadratic(ewc)
    theta = {n: p.detach().clone().double() for n, p in model.named_parameters()}
    constant = sum(ewc.get_extra_state()["constants"].values())
    expected = 1.5 * (constant + sum((S[n] * (theta[n] - mu[n]) ** 2).sum() for n in S).item())
    penalty = ewc.penalty()
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    rounding = 1e-5 if dtype != torch.bfloat16 else 2e-2
    for name, p in model.named_parameters():
        slope = 3.0 * S[name] * (theta[name] - mu[name])
        torch.testing.assert_close(p.grad.double(), slope, rtol=rounding, atol=1e-9)
        p.grad = torch.ones_like(p)
    ewc.add_gradient_()
    for name, p in model.named_parameters():
        slope = 1 + 3.0 * S[name] * (theta[name] - mu[name])
        torch.testing.assert_close(p.grad.double(), slope, rtol=rounding, atol=1e-6)
    d = {"turned": 0.5 + torch.rand(7, 5, generator=generator(5)), "cube": 2.0}
    ewc.proximal_step_({n: 0.1 for n in S if n != "alone"}, d)
    for name, p in model.named_parameters():
        c, D = 0.3 * S[name], torch.as_tensor(d.get(name, 1.0)).double()
        there = (D * theta[name] + c * mu[name]) / (D + c) if name != "alone" else theta[name]
        torch.testing.assert_close(p.detach().double(), there, rtol=rounding, atol=1e-6)


def test_the_penalty_can_be_differentiated_twice():
    model = nn.Linear(2, 2, bias=False)
    ewc = after_tasks(model)
    (slope,) = torch.autograd.grad(ewc.penalty(), model.weight, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), model.weight)
    torch.testing.assert_close(second, 3.0 * ewc.importance["weight"])


def test_several_tasks_are_the_full_state_within_rounding():
    torch.manual_seed(0)
    for rule in RULES:
        full, small = nn.Linear(60, 50), nn.Linear(60, 50)
        small.load_state_dict(full.state_dict())
        options = {"rule": rule, "gamma": 0.5 if rule == "online" else 1.0}
        a = after_tasks(full, 3, curvature="diagonal", **options)
        b = after_tasks(small, 3, **options)
        assert b.penalty().item() == pytest.approx(a.penalty().item(), rel=0.01)
        for name, S in a.importance.items():
            error = (b.importance[name] - S).abs()
            assert (error <= 3 * RELATIVE * S + 3 * SMALLEST * S.max()).all()


@pytest.mark.parametrize("curvature", ["diagonal", "compact"])
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 0, 2)])
def test_a_parameter_without_weights_changes_nothing(curvature, shape):
    found = []
    for empty in (False, True):
        model = nn.Linear(4, 3)
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
        if empty:
            model.register_parameter("empty", nn.Parameter(torch.zeros(shape)))
        ewc = EWC(model, 3.0, curvature=curvature)
        F = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}
        for _ in range(2):
            ewc.merge(F | {"empty": torch.zeros(shape)})
            model.weight.data.add_(0.5)
        penalty = ewc.penalty()
        penalty.backward()
        ewc.add_gradient_()
        ewc.proximal_step_(0.1)
        assert diagnose(model, ewc, lr=1e-3)
        found.append((penalty.item(), model.weight.detach().clone()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_training_ends_where_loss_and_penalty_are_least():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    ewc = EWC(model, lam=2.0, curvature="compact")
    ewc.merge({"weight": torch.rand(3, 4)})
    x, y = torch.randn(64, 4), torch.randn(64, 3)
    S, mu = ewc.importance["weight"].double(), ewc.anchor["weight"].double()
    H, b = x.T.double() @ x.double() * 2 / 192, y.T.double() @ x.double() * 2 / 192
    expected = torch.stack(
        [torch.linalg.solve(H + 2 * S[i].diag(), b[i] + 2 * S[i] * mu[i]) for i in range(3)]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    with ewc.attach(optimizer):
        for step in range(600):
            optimizer.param_groups[0]["lr"] = 0.05 * 0.99**step
            optimizer.zero_grad()
            functional.mse_loss(model(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(model.weight.double(), expected, rtol=1e-3, atol=1e-4)


# --- the anchor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_anchor_of_a_model_in_half_precision_is_exact(dtype):
    model = nn.Linear(30, 20).to(dtype)
    ewc = EWC(model, lam=1e6, curvature="compact")
    ewc.merge({n: torch.ones_like(p) for n, p in model.named_parameters()})
    before = copy.deepcopy(model)
    assert ewc.penalty().item() == 0
    ewc.proximal_step_(1.0)
    for a, b in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dtype", "u"), [(None, 2.0**-11), (torch.bfloat16, 2.0**-8)])
def test_a_rounded_anchor_costs_no_more_than_rounding_the_model(dtype, u):
    model = nn.Linear(300, 20)
    curvature = "compact" if dtype is None else Compact(anchor=dtype)
    ewc = EWC(model, lam=5.0, curvature=curvature)
    ewc.merge({n: torch.rand_like(p) for n, p in model.named_parameters()})
    S, before = ewc.importance, {n: p.detach().clone() for n, p in model.named_parameters()}
    bound = 2.5 * sum((S[n] * (u * before[n]) ** 2).sum() for n in S).item()
    assert 0 < ewc.penalty().item() < bound
    ewc.proximal_step_(1e9)  # however long training lasts, no weight goes further than that
    for name, p in model.named_parameters():
        assert ((p - before[name]).abs() <= u * before[name].abs() + 2.0**-24).all()


def test_an_anchor_in_full_precision_does_not_move_the_weights():
    model = nn.Linear(30, 20)
    ewc = EWC(model, curvature=Compact(anchor=torch.float32))
    ewc.merge({n: torch.ones_like(p) for n, p in model.named_parameters()})
    assert ewc.penalty().item() == 0


def test_a_weight_without_room_is_refused_and_nothing_changed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ewc = after_tasks(model)
    with torch.no_grad():
        model[1].bias[0] = 1e6
    before = copy.deepcopy(ewc.state_dict())
    with pytest.raises(ValueError, match=r"'1\.bias' has weights above 65504.*anchor in float16"):
        ewc.merge(random_fisher(model, 3))
    assert str(ewc.state_dict()) == str(before)


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_a_bad_fisher_is_refused_and_nothing_changed(bad):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ewc = after_tasks(model)
    F = random_fisher(model, 3)
    F["1.bias"][0] = bad
    before = str(ewc.state_dict())
    with pytest.raises(ValueError, match=r"fisher\['1\.bias'\]"):
        ewc.merge(F)
    assert str(ewc.state_dict()) == before


# --- what goes along with it --------------------------------------------------------------------


def test_it_takes_three_bytes_per_weight_however_many_tasks_there_are():
    model = nn.Linear(100, 100)
    for n in (1, 5):
        ewc = after_tasks(model, n)
        size = sum(b.numel() * b.element_size() for b in ewc.buffers())
        assert size == 3 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("way", ["attach", "gradient"])
def test_a_step_needs_room_for_a_few_rows_and_one_scale(monkeypatch, way):
    monkeypatch.setattr(compact, "PIECE", 1000)
    model = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(20)))
    ewc = after_tasks(model)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    if way == "attach":
        ewc.attach(optimizer)
    memory = PeakMemory()
    for _ in range(2):  # the first meets all that is there
        memory.peak = before = memory.live
        with memory:
            if way == "gradient":
                ewc.add_gradient_()
            optimizer.step()
    # Adam itself needs a few tensors of one layer; the weights take 20 times as much as one does.
    assert memory.peak - before < 4 * 40_000


@pytest.mark.parametrize("rule", RULES)
def test_the_state_restores_and_goes_on_the_same(tmp_path, rule):
    model = Odd()
    ewc = after_tasks(model, 3, rule=rule)
    twin = copy.deepcopy(model)
    restored = EWC(twin, rule=rule, curvature="compact")
    torch.save(ewc.state_dict(), tmp_path / "ewc.pt")
    restored.load_state_dict(torch.load(tmp_path / "ewc.pt", weights_only=True))
    for m, e in ((model, ewc), (twin, restored)):
        e.merge(random_fisher(m, seed=50))
        move(m, seed=60)
    assert restored.penalty().item() == ewc.penalty().item()
    assert all(torch.equal(S, ewc.importance[n]) for n, S in restored.importance.items())


def test_a_state_of_the_full_kind_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="curvature='diagonal'"):
        EWC(model, curvature="compact").load_state_dict(EWC(model).state_dict())


def test_further_rows_reset_and_the_path_follow():
    model = nn.Linear(3, 2)
    ewc = after_tasks(model)
    S, mu = quadratic(ewc)
    here = {n: p.detach().double() for n, p in model.named_parameters()}
    F = random_fisher(model, 7)
    at = ewc.path(F, damping=0.0).at(2.0)
    for name in S:
        total = 2 * S[name] + F[name].double()
        expected = (2 * S[name] * mu[name] + F[name].double() * here[name]) / total
        torch.testing.assert_close(
            at[name].double(), expected.where(total > 0, here[name]), rtol=1e-4, atol=1e-6
        )
    model.weight = nn.Parameter(torch.cat([model.weight.detach(), torch.ones(2, 3)]))
    model.bias = nn.Parameter(torch.cat([model.bias.detach(), torch.ones(2)]))
    ewc.grow_()
    assert torch.equal(ewc.importance["weight"][:2].double(), S["weight"])
    assert not ewc.importance["weight"][2:].any()
    ewc.reset()
    assert ewc.penalty().item() == 0
    assert not any(S.any() for S in ewc.importance.values())


def test_a_healthy_one_is_diagnosed_as_such():
    torch.manual_seed(0)
    model = mlp(6, [8], 3, seed=0)
    x = torch.randn(60, 6)
    data = torch.utils.data.TensorDataset(x, (x[:, :3]).argmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), data.tensors[1]).backward()
        optimizer.step()
    ewc = EWC(model, lam=5.0, curvature="compact")
    ewc.consolidate(data)
    report = diagnose(model, ewc, data)
    assert report, str(report)
    assert "where F comes from" in report.checked


def test_state_off_the_accelerator_stays_there():
    model = nn.Linear(3, 2)
    ewc = after_tasks(model, curvature=Compact(device="cpu"))
    before = ewc.penalty().item()
    ewc.to("meta")
    assert {b.device.type for b in ewc.buffers()} == {"cpu"}
    assert ewc.penalty().item() == before


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"anchor must be a floating-point type.*torch\.int8"):
        Compact(anchor=torch.int8)
    with pytest.raises(ValueError, match="rule 'separate' is none.*which no checkpoint holds"):
        EWC(nn.Linear(2, 2), rule="separate", curvature=Compact(anchor="model.safetensors"))


# --- an anchor in its file ----------------------------------------------------------------------


def saved(model: nn.Module, path: os.PathLike) -> None:
    """Save as Transformers does: under a new name, then renamed."""
    state = {n: p.contiguous() for n, p in model.state_dict().items()}
    safetensors.save_file(state, f"{path}.new", metadata={"format": "pt"})
    os.replace(f"{path}.new", path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_the_checkpoint_is_the_anchor(tmp_path, dtype):
    model = Odd(dtype)
    model.register_buffer("odd", torch.zeros(3, dtype=torch.uint8))  # others follow unaligned
    in_memory = EWC(model, 3.0, "latest", curvature=Compact(anchor=dtype))
    ewc = EWC(model, 3.0, curvature=Compact(anchor=tmp_path / "model.safetensors"))
    assert ewc.rule == "latest"
    for task in range(2):
        move(model, task)
        saved(model, tmp_path / "model.safetensors")
        for e in (ewc, in_memory):
            e.merge(random_fisher(model, task))
    move(model, 9)
    assert ewc.penalty().item() == in_memory.penalty().item() > 0
    assert all(torch.equal(mu, ewc.anchor[n]) for n, mu in in_memory.anchor.items())
    size = sum(b.numel() * b.element_size() for b in ewc.buffers())
    assert size == sum(p.numel() for p in model.parameters())
    twin = copy.deepcopy(model)
    for m, e in ((model, ewc), (twin, EWC(twin, 3.0, "latest", curvature=Compact(dtype)))):
        if m is twin:
            e.load_state_dict(in_memory.state_dict())
        e.proximal_step_(0.1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_a_folder_of_checkpoints_and_a_state_of_it(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    for number, layer in enumerate(model):
        state = {f"{number}.{n}": p for n, p in layer.state_dict().items()}
        safetensors.save_file(state, tmp_path / f"model-{number}.safetensors")
    ewc = EWC(model, 3.0, curvature=Compact(anchor=tmp_path))
    ewc.merge(random_fisher(model, 0))
    move(model, 1)
    restored = EWC(copy.deepcopy(model), curvature=Compact(anchor=str(tmp_path)))
    restored.load_state_dict(ewc.state_dict())
    assert restored.penalty().item() == ewc.penalty().item() > 0
    saved(model, tmp_path / "model-0.safetensors")  # other weights, under the names of the old ones
    fresh = EWC(model, curvature=Compact(anchor=tmp_path))
    with pytest.raises(ValueError, match="holds another '0.weight' than the checkpoint that was"):
        fresh.load_state_dict(ewc.state_dict())
    assert fresh.n_tasks == 0
    assert ewc.penalty().item() > 0  # the old file is there as long as it is mapped


def test_a_checkpoint_of_other_weights_is_refused_and_nothing_changed(tmp_path):
    model = nn.Linear(2, 2)
    file = tmp_path / "model.safetensors"
    ewc = EWC(model, curvature=Compact(anchor=file))
    with pytest.raises(FileNotFoundError, match="save the model there first"):
        ewc.merge(random_fisher(model, 0))
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is no safetensors file"):
        ewc.merge(random_fisher(model, 0))
    saved(model, file)
    move(model, 0)
    with pytest.raises(ValueError, match="does not hold 'weight' as the model has it now"):
        ewc.merge(random_fisher(model, 0))
    assert ewc.n_tasks == 0
    assert ewc.penalty().item() == 0


def test_a_checkpoint_that_is_written_over_is_noticed(tmp_path):
    model = nn.Linear(2, 2)
    file = tmp_path / "model.safetensors"
    saved(model, file)
    ewc = EWC(model, curvature=Compact(anchor=file))
    ewc.merge(random_fisher(model, 0))
    content = bytearray(file.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["weight"]["dtype"] == "F32"
    content[-1] ^= 1
    os.utime(file, ns=(0, 0))
    file.write_bytes(content)
    with pytest.raises(RuntimeError, match="has been written over since it became the anchor"):
        ewc.proximal_step_(0.1)
