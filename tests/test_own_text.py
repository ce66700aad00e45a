"""Text from the model itself, against the model's own probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("transformers")
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from ewc_tutorial import EWC
from ewc_tutorial.huggingface import consolidate, own_text, sequence_fisher

#: These load Transformers, which takes as long as many a test.
pytestmark = pytest.mark.slow

VOCABULARY, END = 5, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": END}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **tokens, resid_pdrop=0.5))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # far from uniform
    model.generation_config.top_k = 2
    model.generation_config.temperature = 0.1
    return model.train()


def every_text(model):
    """Return each text of at most two new tokens with its log-probability, which has a gradient."""
    model = model.double().eval()
    for first, second in itertools.product(range(VOCABULARY), repeat=2):
        if first == END and second:
            continue  # one text, whatever comes after the end
        log_p = model(torch.tensor([[0, first]])).logits[0].log_softmax(1)
        text = (0, first) if first == END else (0, first, second)
        yield text, log_p[0, first] + (0 if first == END else log_p[1, second])


def test_the_draws_and_their_fisher_are_those_of_the_model(model):
    n, before = 2000, torch.get_rng_state()
    texts = own_text(model, n, 2, batch_size=1000)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert texts == own_text(model, n, 2, batch_size=1000, generator=0)
    assert texts != own_text(model, n, 2, batch_size=1000, generator=1)
    drawn = [tuple(text["input_ids"]) for text in texts]
    empirical = sequence_fisher(model, texts, "empirical", batch_size=500)
    total = spread = 0.0
    for text, log_p in every_text(model):
        p = log_p.exp().item()
        sigma = (p * (1 - p) / n) ** 0.5
        assert abs(drawn.count(text) / n - p) < 4 * sigma + 1e-3, text
        gradients = torch.autograd.grad(log_p, list(model.parameters()))
        squared = sum(g.square().sum() for g in gradients).item()
        total, spread = total + p * squared, spread + p * squared**2
    measured = sum(value.sum() for value in empirical.values()).item()
    assert abs(measured - total) < 4 * ((spread - total**2) / n) ** 0.5 < 0.2 * total


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 50.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": [1, 2]},
        {"typical_p": 0.3},
        {"min_p": 0.4},
        {"eta_cutoff": 0.5, "epsilon_cutoff": 0.5},
        {"bad_words_ids": [[2]]},
        {"min_new_tokens": 5},
        {"exponential_decay_length_penalty": (1, 5.0)},
        {"guidance_scale": 3.0},
        {"forced_eos_token_id": END},
    ],
)
def test_no_setting_of_the_model_changes_its_text(model, setting):
    expected = own_text(model, 30, 5)
    mine = model.generation_config
    for name, value in setting.items():
        setattr(mine, name, value)
    assert own_text(model, 30, 5) == expected
    assert model.generation_config is mine
    assert all(getattr(mine, name) == value for name, value in setting.items())


def test_the_settings_are_back_where_writing_fails(model):
    mine = model.generation_config
    with pytest.raises(ValueError, match="no_such_option"):
        own_text(model, 1, 5, no_such_option=1)
    assert model.generation_config is mine


def test_a_prompt_gets_no_label_and_a_text_ends_where_it_is_told(model):
    texts = own_text(model, 40, 5, prompt=[2, END, 1], eos_token_id=[3], batch_size=7)
    assert len(texts) == 40
    for text in texts:
        ids, labels = text["input_ids"], text["labels"]
        assert ids[:3] == [2, END, 1]
        assert labels == [-100] * 3 + ids[3:]
        assert 3 not in ids[3:-1]
        assert ids[-1] == 3 or len(ids) == 8
    assert len({len(text["input_ids"]) for text in texts}) > 1
    ewc = EWC(model)
    consolidate(ewc, texts)
    assert ewc.n_tasks == 1


def test_what_cannot_be_written_is_said(model):
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        own_text(model, 0, 5)
    with pytest.raises(TypeError, match="n must be a whole number, not 2.5"):
        own_text(model, 2.5, 5)
    with pytest.raises(TypeError, match="max_new_tokens must be a whole number, not None"):
        own_text(model, 1, None)
    with pytest.raises(ValueError, match="prompt must hold at least one token"):
        own_text(model, 1, 5, prompt=[])
    classifier = BertForSequenceClassification(
        BertConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match="causal language model to write text, not a sequence_cl"):
        own_text(classifier, 1, 5)
