"""The README's examples run as they stand, and its files are there."""

from __future__ import annotations

import re

import pytest
import torch
from readme_examples import README, examples, names_of_the_library


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


def test_no_example_is_left_out():
    assert len(examples()) == 2


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (README.parent / target).exists(), target
