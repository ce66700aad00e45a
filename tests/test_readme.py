"""The README's examples run as they stand, and its files are there."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from readme_examples import README, examples, names_of_the_library
from torch.utils.data import DataLoader

from ewc_tutorial import EWC


def test_a_model_of_ones_own():
    names = names_of_the_library()
    exec(examples()[0], names)
    ewc, model = names["ewc"], names["model"]
    assert ewc.n_tasks == 1
    assert ewc.penalty() == 0
    with torch.no_grad():
        model[0].weight.add_(0.1)
    assert ewc.penalty() > 0


def test_the_trainer(tmp_path):
    pytest.importorskip("transformers")
    from test_huggingface_trainer import arguments, gpt2, sequences

    names = names_of_the_library()
    exec(examples()[0], names)
    model = names["model"] = gpt2()
    names |= {"args": arguments(tmp_path), "old_data": sequences(6, 0)}
    names |= {"new_data": sequences(6, 1), "old_test": sequences(3, 2)}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    exec(examples()[1], names)
    assert names["ewc"].n_tasks == 1
    assert all(torch.equal(names["ewc"].anchor[name], before[name]) for name in names["ewc"].anchor)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_callback_of_a_trainer(tmp_path):
    pytest.importorskip("transformers")
    from test_huggingface_trainer import arguments, gpt2, sequences
    from transformers import Trainer

    from ewc_tutorial.huggingface import collator, consolidate

    model = gpt2()
    names = {"EWC": EWC, "Trainer": Trainer, "consolidate": consolidate, "model": model}
    names |= {"args": arguments(tmp_path), "old_data": sequences(6, 0)}
    names["data"] = {"train_dataset": sequences(6, 1), "data_collator": collator(model)}
    exec(examples()[2], names)
    assert names["ewc"].n_tasks == 1
    assert names["ewc"].penalty() > 0  # it has been trained


@pytest.mark.slow
def test_lightning(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from test_frameworks import NEW, OLD, TestLightning, network, weights_of

    monkeypatch.chdir(tmp_path)  # it leaves a checkpoint there
    module = TestLightning.module(network())
    names = {"EWC": EWC, "module": module, "old_data": OLD, "new_loader": DataLoader(NEW, 4)}
    names["Trainer"] = partial(TestLightning.trainer, tmp_path)
    before = weights_of(module)
    exec(examples()[3], names)
    assert names["ewc"].n_tasks == 1
    assert not torch.equal(weights_of(module), before)


@pytest.mark.slow
def test_avalanche():
    pytest.importorskip("avalanche")
    from avalanche.training import Naive
    from test_frameworks import NEW, OLD, TestAvalanche, network, optimizer_of

    model = network()
    names = {"EWC": EWC, "model": model, "optimizer": optimizer_of("SGD", model.parameters())}
    names |= {"Naive": Naive, "loss": torch.nn.CrossEntropyLoss()}
    names["benchmark"] = SimpleNamespace(train_stream=TestAvalanche.experiences(OLD, NEW))
    exec(examples()[4], names)
    assert names["plugin"].ewc.n_tasks == 2


def test_choosing_lambda(tmp_path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)  # it leaves its file there
    names = names_of_the_library() | {"ax": pyplot.subplots()[1]}
    names |= {"new_validation": names["new_data"], "old_validation": names["old_data"]}
    names["train"] = lambda lam, seed: names["model"]
    exec(examples()[5], names)
    assert names["found"].sentence in capsys.readouterr().out
    assert (tmp_path / "runs.csv").exists()
    pyplot.close(names["ax"].figure)


def test_what_a_training_kept(capsys):
    names = names_of_the_library()
    exec(examples()[0], names)
    names |= {"new_validation": names["new_data"], "old_validation": names["old_data"]}
    exec(examples()[6], names)
    assert "Next: not trained" in capsys.readouterr().out


def test_no_example_is_left_out():
    assert len(examples()) == 7


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (README.parent / target).exists(), target
