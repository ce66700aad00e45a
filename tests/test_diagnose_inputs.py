"""diagnose on what other programs keep, on statistics that drift, and on narrow consoles."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ewc_tutorial import EWC, diagnose, fisher_diagonal
from ewc_tutorial.console import printable
from ewc_tutorial.course.bugs import copied_anchor
from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.course.training import train
from ewc_tutorial.diagnosis.report import Diagnosis, Finding


class Holder:
    """What Avalanche's ParamData looks like: a tensor in ``data``."""

    def __init__(self, tensor):
        self.data, self.shape = tensor, tensor.shape


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


FORMS = {
    "tensors": lambda t: t,
    "ParamData": lambda t: {name: Holder(tensor) for name, tensor in t.items()},
    "parameters": lambda t: {name: nn.Parameter(tensor) for name, tensor in t.items()},
    "arrays": lambda t: {name: tensor.numpy() for name, tensor in t.items()},
    "flat vector": flat,
    "flat array": lambda t: flat(t).numpy(),
    "flat holder": lambda t: Holder(flat(t)),
}


@pytest.fixture(scope="module")
def trained():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 6, generator=g), torch.randint(0, 3, (64,), generator=g)
    model = mlp(6, [8], 3, seed=0)
    train(model, TensorDataset(x, y), epochs=20)
    fisher = fisher_diagonal(model, (x, y))
    return model, (x, y), fisher, {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_f_and_anchor(trained, form):
    model, data, fisher, anchor = trained
    change = FORMS[form]
    report = diagnose(model, data=data, fisher=change(fisher), anchor=change(anchor))
    assert not report.findings
    assert "where F comes from" in report.checked
    wrong = {name: 3 * F for name, F in fisher.items()}
    report = diagnose(model, data=data, fisher=change(wrong), anchor=change(anchor))
    assert [f.name for f in report.findings] == ["scale of F"]
    own = {name: p.detach() for name, p in model.named_parameters()}
    if "flat" not in form:  # flattening copies
        report = diagnose(model, data=data, fisher=change(fisher), anchor=change(own))
        assert [f.name for f in report.findings] == ["live reference"]


def test_a_flat_vector_of_the_trainable_parameters_or_of_all(trained):
    model, data, fisher, anchor = trained
    model[0].bias.requires_grad_(False)
    try:
        part = {n: F for n, F in fisher.items() if n != "0.bias"}
        for f in (flat(part), flat(fisher)):
            report = diagnose(model, data=data, fisher=f, anchor=flat(anchor))
            assert not [f for f in report.findings if f.name not in ("no anchor",)], report
        with pytest.raises(ValueError, match=r"vector of all 75 trainable .* shape \(7,\)"):
            diagnose(model, fisher=torch.ones(7), anchor=flat(anchor))
    finally:
        model[0].bias.requires_grad_(True)


@pytest.mark.parametrize("value", ["text", 3, [1.0, 2.0], {"0.weight": "text"}])
def test_what_is_no_tensor(trained, value):
    model, _, _, anchor = trained
    with pytest.raises(TypeError, match="fisher.* must be a tensor, an array or .* by parameter"):
        diagnose(model, fisher=value, anchor=anchor)


def test_labels_that_are_none_are_named(trained):
    model, (x, y), fisher, anchor = trained
    setting = {"fisher": fisher, "anchor": anchor}
    with pytest.raises(ValueError, match="label 7 is outside the model's 3 classes"):
        diagnose(model, data=(x, torch.full_like(y, 7)), **setting)
    noise = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
    noisy = fisher | {"0.weight": noise * fisher["0.weight"]}  # no candidate's exactly
    new_data = (x, torch.full_like(y, 7))
    with pytest.raises(ValueError, match="label 7 is outside the model's 3 classes"):
        diagnose(model, data=(x, y), new_data=new_data, fisher=noisy, anchor=anchor)


def test_where_there_is_no_exact_f_it_is_compared_with_the_empirical_one():
    pytest.importorskip("transformers")
    from ewc_tutorial.huggingface.ctc import CTC

    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(64, 6, 4, generator=g)
    text = torch.tensor([[-1, 1, 2]]).repeat(64, 1)
    options = {"data": (x, text), "likelihood": CTC(), "anchor": copied_anchor(model)}
    F = fisher_diagonal(model, (x, text), "empirical", likelihood=CTC())
    assert diagnose(model, fisher=F, **options)
    wrong = {name: (8 + 4 * torch.rand(f.shape, generator=g)) * f for name, f in F.items()}
    report = diagnose(model, fisher=wrong, **options)
    assert [f.name for f in report.findings] == ["scale of F"]
    ratio = sum(F.sum() for F in wrong.values()) / sum(F.sum() for F in F.values())
    assert f"F is {ratio:.2g} of the empirical F in total" in repr(report)


class Named(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, a, b):
        return self.model(a + b)


def test_inputs_in_a_dictionary(trained):
    model, (x, y), fisher, anchor = trained
    data = ({"a": x - 1.0, "b": torch.ones_like(x)}, y)
    parts = [{f"model.{n}": t for n, t in tensors.items()} for tensors in (fisher, anchor)]
    for factor, names in ((1.0, []), (float(len(x)), ["scale of F"])):
        F = {name: factor * value for name, value in parts[0].items()}
        report = diagnose(
            Named(model), data=data, fisher=F, anchor=parts[1], measure=fisher_diagonal
        )
        assert [f.name for f in report.findings] == names
        assert "needs inputs in one tensor" in report.skipped["how F is measured"]


def normed(kind, images):
    if images:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), kind[1](8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )
    return nn.Sequential(nn.Linear(64, 32), kind[0](32), nn.ReLU(), nn.Linear(32, 10))


BATCH = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYER = (nn.LayerNorm, lambda n: nn.GroupNorm(2, n))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "images", "frozen", "drifts"),
    [
        (BATCH, False, False, True),
        (BATCH, False, True, False),
        (BATCH, True, False, True),
        (LAYER, False, False, False),
        (LAYER, True, False, False),
    ],
)
def test_running_statistics_that_leave_the_old_data(kind, images, frozen, drifts):
    old, new = permuted_tasks(2, n_train=200, n_test=50, flatten=not images)
    if images:  # permuted pixels have the same statistics: another brightness has not
        new = type(new)(
            "new", TensorDataset(-new.train.tensors[0], new.train.tensors[1]), new.test, new.classes
        )
    torch.manual_seed(0)
    model = normed(kind, images)
    train(model, old, epochs=10)
    ewc = EWC(model, lam=1e12)
    ewc.consolidate(old)
    assert not diagnose(model, ewc, old).findings
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if frozen:
        model[1].train = lambda mode=True: model[1]
        model[1].training = False
    train(model, new, epochs=10, ewc=ewc)
    names = [finding.name for finding in diagnose(model, ewc, old).findings]
    assert names == ["running statistics"] * drifts
    if drifts:
        model.load_state_dict({n: v for n, v in before.items() if "running" in n}, strict=False)
        assert not diagnose(model, ewc, old).findings


def test_statistics_need_data_that_can_be_read_again():
    old = permuted_tasks(1, n_train=100, n_test=50)[0]
    model = normed(BATCH, False)
    train(model, old, epochs=1)
    ewc = EWC(model)
    ewc.consolidate(old)
    assert "running statistics" in diagnose(model, ewc).skipped
    assert "running statistics" in diagnose(model, ewc, iter([old.train.tensors])).skipped


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
def test_every_console_can_print_a_diagnosis(monkeypatch, encoding):
    report = Diagnosis(checked=["names"], skipped={"the ½": "λ is zero"})
    found = Diagnosis(findings=[Finding("missing ½", "3 times λ/2 Σ F (θ − θ*)²", "write λ/2")])
    console = io.TextIOWrapper(raw := io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    print(report, found, found.findings[0], sep="\n")
    console.flush()
    text = raw.getvalue().decode(encoding)
    assert "?" not in text
    if encoding == "utf-8":
        assert "✓ Nothing found" in text
        assert "λ/2 Σ F (θ − θ*)²" in text
    else:
        assert "OK Nothing found" in text
        assert "lambda/2 sum F (theta - theta*)^2" in text


def test_what_has_no_plain_spelling_is_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert printable("✓ 語") == "OK ?"
