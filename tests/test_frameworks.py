"""EWC in Lightning and Avalanche, beside the loop that one would write by hand."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ewc_tutorial import EWC

#: Both frameworks take many seconds to load.
pytestmark = pytest.mark.slow

FEATURES, CLASSES, BATCH, STEPS = 5, 3, 4, 6


def data(seed, n=BATCH * STEPS):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (n,), generator=generator))


OLD, NEW, LAST = data(0), data(1), data(2)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def optimizer_of(name, parameters):
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    return torch.optim.Adam(parameters, lr=0.01, eps=1e-3)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def loop(model, ewc, optimizer, dataset, every=None, accumulate=1, steps=None, autocast=False):
    """Train by hand and return the weights."""
    batches = list(DataLoader(dataset, BATCH))[:steps]
    with ewc.attach(optimizer, every):
        for i, (x, y) in enumerate(batches, start=1):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = nn.functional.cross_entropy(model(x), y)
            (loss / accumulate).backward()
            if i % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return weights_of(model)


def consolidated(model, curvature="diagonal", lam=30.0):
    """An EWC of which the model has been moved away, so that it pulls from the first step."""
    ewc = EWC(model, lam, curvature=curvature)
    ewc.consolidate(OLD)
    torch.manual_seed(7)
    with torch.no_grad():
        [p.add_(0.3 * torch.randn_like(p)) for p in model.parameters()]
    return ewc


WAYS = [("diagonal", None), ("kronecker", None), ("kronecker", 2)]


class TestLightning:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("lightning")

    @staticmethod
    def module(net, name="SGD", split=False):
        from lightning.pytorch import LightningModule

        class Module(LightningModule):
            def __init__(self):
                super().__init__()
                self.net = net
                self.automatic_optimization = not split

            def forward(self, x):
                return self.net(x)

            def training_step(self, batch, index):
                x, y = batch
                loss = nn.functional.cross_entropy(self(x), y)
                if not split:
                    return loss
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
                return None

            def validation_step(self, batch, index):
                pass

            def configure_optimizers(self):
                if not split:
                    return optimizer_of(name, self.net.parameters())
                return [optimizer_of(n, self.net[i].parameters()) for n, i in split]

        return Module()

    @staticmethod
    def trainer(folder, callbacks=(), **options):
        from lightning.pytorch import Trainer

        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
        }
        warnings.filterwarnings("ignore", module="lightning")
        return Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet | options)

    @pytest.mark.parametrize("name", ["SGD", "Adam"])
    @pytest.mark.parametrize(("curvature", "every"), WAYS)
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_it_is_the_loop_written_by_hand(self, tmp_path, name, curvature, every, accumulate):
        from ewc_tutorial.frameworks.lightning import EWCCallback

        net = network()
        ewc = consolidated(net, curvature)
        by_hand = copy.deepcopy(net)
        other = EWC(by_hand, ewc.lam, curvature=curvature)
        other.load_state_dict(ewc.state_dict())
        wanted = loop(
            by_hand, other, optimizer_of(name, by_hand.parameters()), NEW, every, accumulate
        )
        trainer = self.trainer(
            tmp_path, [EWCCallback(ewc, every)], accumulate_grad_batches=accumulate
        )
        trainer.fit(self.module(net, name), DataLoader(NEW, BATCH))
        assert torch.equal(weights_of(net), wanted)

    def test_in_mixed_precision(self, tmp_path):
        from ewc_tutorial.frameworks.lightning import EWCCallback

        net = network()
        ewc = consolidated(net)
        by_hand = copy.deepcopy(net)
        other = EWC(by_hand, ewc.lam)
        other.load_state_dict(ewc.state_dict())
        optimizer = optimizer_of("SGD", by_hand.parameters())
        wanted = loop(by_hand, other, optimizer, NEW, autocast=True)
        trainer = self.trainer(tmp_path, [EWCCallback(ewc)], precision="bf16-mixed")
        trainer.fit(self.module(net), DataLoader(NEW, BATCH))
        assert torch.equal(weights_of(net), wanted)

    def test_with_two_optimizers(self, tmp_path):
        from ewc_tutorial.frameworks.lightning import EWCCallback

        split = [("SGD", 0), ("Adam", 2)]
        net = network()
        ewc = consolidated(net)
        by_hand = copy.deepcopy(net)
        other = EWC(by_hand, ewc.lam)
        other.load_state_dict(ewc.state_dict())
        optimizers = [optimizer_of(n, by_hand[i].parameters()) for n, i in split]
        for optimizer in optimizers:
            other.attach(optimizer)
        for x, y in DataLoader(NEW, BATCH):
            nn.functional.cross_entropy(by_hand(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        self.trainer(tmp_path, [EWCCallback(ewc)]).fit(
            self.module(net, split=split), DataLoader(NEW, BATCH)
        )
        assert torch.equal(weights_of(net), weights_of(by_hand))

    @pytest.mark.parametrize(("curvature", "every"), [("diagonal", None), ("kronecker", 4)])
    def test_a_resumed_training_ends_where_an_uninterrupted_one_does(
        self, tmp_path, curvature, every
    ):
        from ewc_tutorial.frameworks.lightning import EWCCallback

        def fit(net, ewc, epochs, **options):
            trainer = self.trainer(tmp_path, [EWCCallback(ewc, every)], max_epochs=epochs)
            trainer.fit(self.module(net, "Adam"), DataLoader(NEW, BATCH), **options)
            return trainer

        whole = network()
        ewc = consolidated(whole, curvature)
        half, start = copy.deepcopy(whole), ewc.state_dict()
        fit(whole, ewc, 2)
        halfway = EWC(half, ewc.lam, curvature=curvature)
        halfway.load_state_dict(start)
        saved = tmp_path / "half.ckpt"
        from lightning.pytorch.callbacks import LambdaCallback

        trainer = self.trainer(
            tmp_path,
            [
                EWCCallback(halfway, every),
                LambdaCallback(on_train_epoch_end=lambda t, _: t.save_checkpoint(saved)),
            ],
        )
        trainer.fit(self.module(half, "Adam"), DataLoader(NEW, BATCH))
        resumed = network(seed=3)
        empty = EWC(resumed, 1.0, curvature=curvature)
        fit(resumed, empty, 2, ckpt_path=saved)
        assert empty.lam == ewc.lam
        assert torch.equal(weights_of(resumed), weights_of(whole))

    def test_an_ewc_of_another_model_is_refused(self, tmp_path):
        from ewc_tutorial.frameworks.lightning import EWCCallback

        with pytest.raises(ValueError, match="not with a copy of it"):
            self.trainer(tmp_path, [EWCCallback(consolidated(network()))]).fit(
                self.module(network()), DataLoader(NEW, BATCH)
            )

    def test_nothing_pulls_after_training(self, tmp_path):
        from ewc_tutorial.frameworks.lightning import EWCCallback

        net = network()
        ewc = consolidated(net)
        module = self.module(net)
        trainer = self.trainer(tmp_path, [EWCCallback(ewc)])
        trainer.fit(module, DataLoader(NEW, BATCH))
        before = weights_of(net)
        (optimizer,) = trainer.optimizers
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
        assert torch.equal(weights_of(net), before)


class TestAvalanche:
    @pytest.fixture(autouse=True)
    def _installed(self):
        warnings.filterwarnings("ignore", module="(avalanche|qpsolvers)")
        pytest.importorskip("avalanche")

    @staticmethod
    def strategy(model, optimizer, plugin):
        from avalanche.training import Naive
        from avalanche.training.plugins import EvaluationPlugin

        class InOrder(Naive):
            def make_train_dataloader(self, **options):
                super().make_train_dataloader(**options | {"shuffle": False})

        return InOrder(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=BATCH,
            train_epochs=1,
            plugins=[plugin],
            evaluator=EvaluationPlugin(),
        )

    @staticmethod
    def experiences(*datasets):
        from avalanche.benchmarks import benchmark_from_datasets
        from avalanche.benchmarks.utils import as_classification_dataset

        def wrapped(dataset):
            dataset.targets = dataset.tensors[1].tolist()
            return as_classification_dataset(dataset)

        parts = [wrapped(dataset) for dataset in datasets]
        return benchmark_from_datasets(train=parts).train_stream

    @pytest.mark.parametrize("name", ["SGD", "Adam"])
    @pytest.mark.parametrize(("curvature", "every"), WAYS)
    def test_it_is_the_loop_written_by_hand(self, name, curvature, every):
        from ewc_tutorial.frameworks.avalanche import EWCPlugin

        model, by_hand = network(), network()
        ewc, other = (EWC(net, 30.0, curvature=curvature) for net in (model, by_hand))
        optimizer = optimizer_of(name, model.parameters())
        strategy = self.strategy(model, optimizer, EWCPlugin(ewc, every, estimator="empirical"))
        mine = optimizer_of(name, by_hand.parameters())
        for experience, task in zip(
            self.experiences(OLD, NEW, LAST), (OLD, NEW, LAST), strict=True
        ):
            strategy.train(experience)
            loop(by_hand, other, mine, task, every)
            other.consolidate(task, "empirical")
            assert torch.equal(weights_of(model), weights_of(by_hand))
        assert ewc.n_tasks == 3
        for key, value in other.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.allclose(ewc.state_dict()[key], value, rtol=1e-5), key

    def test_a_training_after_one_that_failed_is_pulled_once(self):
        from ewc_tutorial.frameworks.avalanche import EWCPlugin

        ends = []
        for fails in (False, True):
            model = network()
            strategy = self.strategy(
                model, torch.optim.SGD(model.parameters(), lr=0.1), EWCPlugin(consolidated(model))
            )
            (experience,) = self.experiences(NEW)
            if fails:
                handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    strategy.train(experience)
                handle.remove()
            strategy.train(experience)
            ends.append(weights_of(model))
        assert torch.equal(*ends)

    @staticmethod
    def pairs_of_classes():
        from avalanche.benchmarks import nc_benchmark

        generator = torch.Generator().manual_seed(4)
        tasks = TensorDataset(torch.randn(60, FEATURES, generator=generator), torch.arange(60) % 6)
        tasks.targets = tasks.tensors[1].tolist()
        order = {"task_labels": False, "fixed_class_order": list(range(6))}
        return nc_benchmark(tasks, tasks, n_experiences=3, **order).train_stream

    def test_a_head_that_grows_is_followed(self):
        from avalanche.models import IncrementalClassifier

        from ewc_tutorial.frameworks.avalanche import EWCPlugin

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), IncrementalClassifier(8, 2))
        ewc = EWC(net, 10.0)
        strategy = self.strategy(net, optimizer_of("SGD", net.parameters()), EWCPlugin(ewc))
        for experience in self.pairs_of_classes():
            strategy.train(experience)
        assert ewc.n_tasks == 3
        assert ewc.importance["2.classifier.weight"].shape == (6, 8)

    def test_another_model_and_heads_by_task_are_refused(self):
        from avalanche.models import SimpleMLP, as_multitask

        from ewc_tutorial.frameworks.avalanche import EWCPlugin

        experience = self.pairs_of_classes()[0]
        model = network()
        optimizer = optimizer_of("SGD", model.parameters())
        with pytest.raises(ValueError, match="made with the strategy's model"):
            self.strategy(model, optimizer, EWCPlugin(EWC(network()))).train(experience)
        heads = as_multitask(SimpleMLP(CLASSES, FEATURES), "classifier")
        optimizer = optimizer_of("SGD", heads.parameters())
        with pytest.raises(ValueError, match="predict from the input alone"):
            self.strategy(heads, optimizer, EWCPlugin(EWC(heads))).train(experience)
