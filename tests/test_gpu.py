"""On a GPU everything is as on the CPU, to 1e-5, in float64 and with its weights left there.

The CPU's results are held against oracles elsewhere; here they are the oracle.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ewc_tutorial import EWC, between
from ewc_tutorial.course import importances, learn, mlp, permuted_tasks, train
from ewc_tutorial.course.sweep import lambda_sweep
from ewc_tutorial.diagnosis import diagnose
from ewc_tutorial.fisher import explain_fisher, fisher_diagonal, fisher_factors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CLASSES = 4


class Recurrent(nn.Module):
    """Reads an image row by row; ``kind`` is a recurrent layer of PyTorch's."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(8, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.squeeze(1))[0][:, -1])


class Attention(nn.Module):
    """A transformer layer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.squeeze(1)).mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.GroupNorm(2, 4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def shared_weight() -> nn.Module:
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Linear(64, CLASSES))


MODELS = {
    "MLP": lambda: nn.Sequential(nn.Flatten(), mlp(64, [16, 16], CLASSES)),
    "LayerNorm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, CLASSES)
    ),
    "CNN": convolutional,
    "transformer": Attention,
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "one weight twice": shared_weight,
}


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().double()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(50, 1, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randint(CLASSES, (50,), generator=g)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in found.items():
        assert value.is_cuda, name
        torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-5, atol=1e-8 * largest)


def on_gpu(thing):
    return copy.deepcopy(thing).cuda()


@pytest.mark.parametrize("estimator", ["exact", "sampled", "empirical", "argmax", "batched"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_fisher_diagonal(model, data, estimator, where):
    expected = fisher_diagonal(model, data, estimator)
    there = tuple(t.to(where) for t in data)
    assert_same(fisher_diagonal(on_gpu(model), there, estimator), expected)


@pytest.mark.parametrize("classes", [10, 100])
def test_a_resnet_in_float32_has_closed_forms_and_no_more_than_rounding_errors(classes):
    """Convolutions that round to TensorFloat-32 would make samples seem to influence each other."""
    torch.manual_seed(0)
    model = pytest.importorskip("torchvision").models.resnet18(num_classes=classes).cuda()
    x, y = torch.randn(6, 3, 32, 32), torch.arange(6)
    rules = explain_fisher(model, (x, y)).values()
    assert all(rule.startswith("closed form") for rule in rules), set(rules)
    expected = fisher_diagonal(copy.deepcopy(model).cpu().double(), (x.double(), y), "empirical")
    for name, value in fisher_diagonal(model, (x, y), "empirical").items():
        largest = expected[name].max().item()
        torch.testing.assert_close(
            value.cpu().double(), expected[name], rtol=1e-3, atol=1e-3 * largest
        )
    EWC(model, curvature="kronecker").consolidate((x, y), "empirical")
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # as it was


@pytest.mark.parametrize(("likelihood", "labels"), [("bernoulli", None), ("gaussian", None)])
@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_other_likelihoods(data, likelihood, labels, estimator):
    model = MODELS["MLP"]().double()
    options = {"estimator": estimator, "likelihood": likelihood}
    expected = fisher_diagonal(model, (data[0], labels), **options)
    assert_same(fisher_diagonal(on_gpu(model), (data[0], labels), **options), expected)


@pytest.mark.parametrize("eigenvalues", ["product", "exact"])
def test_fisher_factors(model, data, eigenvalues):
    layers = {
        f"{name}.weight": f"{name}.bias"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if "self_attn" not in name
    }
    expected = fisher_factors(model, data, layers, eigenvalues=eigenvalues)
    found = fisher_factors(on_gpu(model), data, layers, eigenvalues=eigenvalues)
    if eigenvalues == "product":
        assert_same(found, expected)
    else:  # eigenvectors have a sign, and where eigenvalues are equal a basis, of their own
        assert found.keys() == expected.keys()
        for name in (n for n in found if n.endswith((":A", ":G"))):
            torch.testing.assert_close(found[name].cpu(), expected[name], rtol=1e-5, atol=1e-8)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.005),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.005, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.005, amsgrad=True),
}


def trained(model: nn.Module, data, device: str, optimizer: str, **options) -> tuple[EWC, float]:
    """Consolidate two tasks and train thirty steps on a third, on one device."""
    model = copy.deepcopy(model).to(device)
    x, y = (t.to(device) for t in data)
    ewc = EWC(model, 20.0, **options)
    ewc.consolidate((x[:20], y[:20]))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    ewc.consolidate((x[20:40], y[20:40]))
    made = OPTIMIZERS[optimizer](model.parameters())
    attached = ewc.attach(made)
    for _ in range(30):
        made.zero_grad()
        F.cross_entropy(model(x[40:]), y[40:]).backward()
        made.step()
    attached.remove()
    return ewc, ewc.penalty().item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("curvature", ["diagonal", "kronecker", "identity"])
def test_training_with_a_proximal_step(data, curvature, optimizer):
    torch.manual_seed(0)
    model = MODELS["MLP"]().double()
    here, expected = trained(model, data, "cpu", optimizer, curvature=curvature)
    there, found = trained(model, data, "cuda", optimizer, curvature=curvature)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same(dict(there.model.named_parameters()), dict(here.model.named_parameters()))
    assert_same(there.importance, here.importance)


@pytest.mark.parametrize("rule", ["separate", "latest", "online", "average"])
def test_rules_and_the_gradient(data, rule):
    model = MODELS["CNN"]().double().eval()
    gradients = []
    for device in ("cpu", "cuda"):
        ewc, _ = trained(model, data, device, "SGD", rule=rule)
        ewc.model.zero_grad()
        ewc.add_gradient_()
        gradients.append({name: p.grad for name, p in ewc.weights().items()})
    assert_same(gradients[1], gradients[0])


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_what_is_remembered_moves_between_devices(data, curvature, tmp_path):
    model = MODELS["MLP"]().double()
    there, expected = trained(model, data, "cuda", "SGD", curvature=curvature)
    torch.save(there.state_dict(), tmp_path / "ewc.pt")
    here = EWC(copy.deepcopy(there.model).cpu(), 20.0, curvature=curvature)
    here.load_state_dict(torch.load(tmp_path / "ewc.pt", map_location="cpu"))
    assert here.penalty().item() == pytest.approx(expected, rel=1e-9)
    back = EWC(there.model, 20.0, curvature=curvature)
    back.load_state_dict(here.state_dict())
    assert back.penalty().item() == pytest.approx(expected, rel=1e-9)
    assert all(value.is_cuda for value in back.importance.values())


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_the_way_back(data, curvature):
    model = MODELS["MLP"]().double()
    points = []
    for device in ("cpu", "cuda"):
        ewc, _ = trained(model, data, device, "SGD", curvature=curvature)
        F = ewc.measure(tuple(t.to(device) for t in data))
        points.append(ewc.path(F).at(3.0))
        half = between(ewc.anchor, ewc.weights(), 0.5)
        assert all(value.device.type == device for value in half.values())
    assert_same(points[1], points[0])


@pytest.mark.parametrize("kind", ["memory_aware", "reversed_logits"])
def test_importances_of_a_finished_network(model, data, kind):
    if kind == "memory_aware" and any(isinstance(m, nn.RNNBase) for m in model.modules()):
        pytest.skip("torch.func has no rule for the fused recurrent layers")
    measure = getattr(importances, kind)
    assert_same(measure(on_gpu(model), data), measure(model, data))


@pytest.mark.parametrize("kind", ["PathIntegral", "RiemannianWalk"])
def test_importances_of_a_training(data, kind):
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = MODELS["MLP"]().double().to(device)
        there = tuple(t.to(device) for t in data)
        walker = getattr(importances, kind)(model)
        if kind == "RiemannianWalk":
            walker.begin(lambda there=there: there)
        train(model, there, steps=20, lr=0.05, on_step=walker)
        found.append(walker.importance())
    assert_same(found[1], found[0])


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_a_whole_course_of_tasks(curvature):
    tasks = permuted_tasks(3)
    accuracies = []
    for device in ("cpu", "cuda"):
        model = mlp(64, [32], 10, seed=0).to(device)
        ewc = EWC(model, 30.0, curvature=curvature)
        history = learn(model, tasks, ewc, epochs=2, evaluations=2, seed=0)
        accuracies.append(history.accuracy)
    # In float32 thousands of steps part, by a test image or two.
    assert abs(accuracies[0] - accuracies[1]).max() < 0.02


def test_members_of_a_sweep_are_single_runs():
    tasks = [task.to("cuda") for task in permuted_tasks(2)]
    found = lambda_sweep(
        tasks, [0.0, 10.0, 1e3], seeds=[0, 1], hidden=[32], epochs=2, device="cuda", progress=False
    )
    for row, lam in enumerate((0.0, 10.0, 1e3)):
        for column, seed in enumerate((0, 1)):
            model = mlp(64, [32], 10, seed=seed).cuda()
            history = learn(model, tasks, EWC(model, lam), epochs=2, evaluations=10, seed=seed)
            alone = history.accuracy[-1].mean()
            assert abs(found.average_accuracy[row, column] - alone) < 0.02


def test_diagnosis(data):
    torch.manual_seed(0)
    model = MODELS["CNN"]().double().eval()
    said = []
    for device in ("cpu", "cuda"):
        model, there = model.to(device), tuple(t.to(device) for t in data)
        ewc = EWC(model, 20.0)
        ewc.consolidate(there, "batched")
        said.append([finding.name for finding in diagnose(model, ewc, there)])
    assert said[0] == said[1] != []
