"""The Fisher information of sequence models against loops over single sequences in float64."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from itertools import chain

import pytest
import torch
from fisher_oracle import assert_fisher_close
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

pytest.importorskip("transformers")
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from ewc_tutorial import EWC
from ewc_tutorial.curvature import Kronecker
from ewc_tutorial.fisher import explain_fisher
from ewc_tutorial.fisher.likelihoods.base import Draws
from ewc_tutorial.huggingface import (
    CTC,
    LoraEWC,
    collator,
    consolidate,
    pad_batch,
    sequence_fisher,
)
from ewc_tutorial.huggingface.logits import Logits
from ewc_tutorial.huggingface.tasks import infer_task

#: These load Transformers, which takes as long as many a test.
pytestmark = pytest.mark.slow

VOCABULARY = 7


def gpt2(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **sizes | options)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in model.parameters():  # away from zero biases and tiny weights
            p.add_(0.3 * torch.randn_like(p))
    return model


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **tokens))


def sequences(lengths=(6, 3, 5, 9), seed=1):
    g = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(VOCABULARY, (n,), generator=g).tolist()} for n in lengths]


def padded(items):
    return pad_batch(items, pad_token_id=3)


def token_loop(model, items, estimator="empirical"):
    """Return the Fisher by the definition: unpadded sequences and labels one by one, in float64."""
    model = copy.deepcopy(model).double().eval()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}

    def add(log_p, weight=1.0):
        gradients = torch.autograd.grad(
            log_p, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += weight * gradient.square()

    for item in items:
        ids = torch.tensor(item["input_ids"])
        labels = torch.tensor(item.get("labels", item["input_ids"]))
        log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        # The logits at t are about the token at t + 1.
        pairs = [(t, labels[t + 1]) for t in range(len(ids) - 1) if labels[t + 1] != -100]
        if estimator == "empirical":
            add(sum((log_p[t, label] for t, label in pairs), 0 * log_p.sum()))
        elif estimator == "argmax":
            add(sum(log_p[t].max() for t, _ in pairs))
        else:
            for t, _ in pairs:
                for c in range(log_p.shape[-1]):
                    add(log_p[t, c], log_p[t, c].exp().item())
    return {name: value / len(items) for name, value in total.items()}


# Causal language models


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("estimator", ["empirical", "exact", "argmax"])
def test_causal_lm_against_a_loop(make, estimator):
    model, items = make(), sequences()
    assert_fisher_close(
        sequence_fisher(model, items, estimator), token_loop(model, items, estimator)
    )


class Streaming(IterableDataset):
    def __init__(self, elements):
        self.elements = elements

    def __iter__(self):
        return iter(self.elements)


def as_tensors(item):
    return {name: torch.tensor(value) for name, value in item.items()}


def tokenized(item):
    """What a tokenizer returns for one text with return_tensors="pt": a batch of one."""
    return BatchEncoding({name: torch.tensor([value]) for name, value in item.items()})


CONTAINERS = {
    "list of items": lambda items: items,
    "tuple of items of tensors": lambda items: tuple(map(as_tensors, items)),
    "loader": lambda items: DataLoader(items, batch_size=2, collate_fn=padded),
    "one batch": lambda items: padded(items),
    "list of one batch": lambda items: [padded(items)],
    "list of two batches": lambda items: [padded(items[:1]), padded(items[1:])],
    "list of batches of one": lambda items: list(map(tokenized, items)),
    "generator of batches": lambda items: (padded(items[i : i + 3]) for i in (0, 3)),
    "generator of items": iter,
    "stream of items": Streaming,
    "stream of tensors": lambda items: Streaming(map(as_tensors, items)),
    "stream of batches": lambda items: Streaming([padded(items[:2]), padded(items[2:])]),
}


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("container", CONTAINERS)
def test_however_the_data_comes(container, batch_size):
    model, items = gpt2(), sequences()
    data = CONTAINERS[container](items)
    fisher = sequence_fisher(model, data, "empirical", batch_size=batch_size)
    assert_fisher_close(fisher, token_loop(model, items))


@pytest.mark.parametrize("container", ["generator of items", "stream of batches"])
def test_of_a_stream_the_first_samples_are_taken(container):
    model, items = gpt2(), sequences()
    data = CONTAINERS[container](items)
    fisher = sequence_fisher(model, data, "empirical", n_samples=3, batch_size=2)
    assert_fisher_close(fisher, token_loop(model, items[:3]))


def test_no_layer_of_gpt2_is_slow():
    model, batch = gpt2(), {"input_ids": torch.arange(6).reshape(2, 3)}
    logits = Logits(model, "causal_lm")
    data = [logits.read(batch)]
    kinds = explain_fisher(logits, data, "empirical", likelihood=logits.likelihood)
    assert all(kind.startswith("closed form") for kind in kinds.values()), kinds


def test_ignored_labels_do_not_count():
    model, items = gpt2(), sequences()
    for item in items:
        item["labels"] = [-100, -100, *item["input_ids"][2:]]
    assert_fisher_close(sequence_fisher(model, items, "empirical"), token_loop(model, items))
    assert_fisher_close(sequence_fisher(model, items, "exact"), token_loop(model, items, "exact"))


def packed_batch(items, form):
    """Return items in one row as Trainers pack them, in the way that tells where each begins."""
    row = {name: torch.tensor([[*chain(*(i[name] for i in items))]]) for name in items[0]}
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])[None]
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return row | {
        "positions": {"position_ids": positions},
        "starts": {
            "position_ids": positions, "cu_seq_lens_q": starts, "cu_seq_lens_k": starts,
            "max_length_q": int(lengths.max()), "max_length_k": int(lengths.max()),
        },
    }[form]  # fmt: skip


@pytest.mark.parametrize("estimator", ["empirical", "exact"])
@pytest.mark.parametrize("form", ["positions", "starts", "items", "one"])
def test_packed_sequences_are_samples_of_their_own(form, estimator):
    model, items = gpt2(), sequences()
    items = [item | {"labels": item["input_ids"]} for item in items]
    items[1]["labels"] = [-100, -100, *items[1]["labels"][2:]]  # a prompt that does not count
    expected = token_loop(model, items, estimator)
    if form == "items":  # of a packed data set, as lists
        data = [
            {name: [*chain(*(item[name] for item in some))] for name in items[0]}
            | {"seq_lengths": [len(item["input_ids"]) for item in some]}
            for some in (items[:3], items[3:])
        ]
    elif form == "one":  # each row packed holds one
        data = [packed_batch([item], "starts") for item in items]
    else:
        data = [packed_batch(items[:3], form), packed_batch(items[3:], form)]
    assert_fisher_close(sequence_fisher(model, data, estimator), expected)


@pytest.mark.parametrize("estimator", ["empirical", "sampled"])
def test_padding_changes_nothing(estimator):
    model, items = gpt2(), sequences()
    alone = sequence_fisher(model, items, estimator, batch_size=1)
    together = padded(items)
    together["labels"] = together["input_ids"].clone()  # nobody has set padding to −100
    wider = {n: torch.nn.functional.pad(t, (0, 4)) for n, t in together.items()}
    for batch in (together, wider):
        fisher = sequence_fisher(model, batch, estimator)
        assert_fisher_close(fisher, {n: v.double() for n, v in alone.items()})


def test_sampled_converges_to_exact():
    model, (item,) = gpt2(), sequences((4,))
    exact = token_loop(model, [item], "exact")
    ids = torch.tensor([item["input_ids"]] * 4000)
    sampled = sequence_fisher(model, {"input_ids": ids}, "sampled")
    for name, value in exact.items():
        assert (sampled[name] - value).norm() < 0.1 * value.norm()


def test_subset_of_a_data_set_is_random_and_of_a_loader_the_first():
    model, items = gpt2(), sequences()
    loader = DataLoader(items, batch_size=3, collate_fn=padded)
    first = sequence_fisher(model, loader, "empirical", n_samples=2)
    assert_fisher_close(first, token_loop(model, items[:2]))
    g = torch.Generator().manual_seed(3)
    some = sequence_fisher(model, items, "empirical", n_samples=2, generator=g)
    pairs = itertools.combinations(items, 2)
    distances = [
        max((some[n] - v).abs().max().item() for n, v in token_loop(model, pair).items())
        for pair in pairs
    ]
    assert min(distances) < 1e-3 * max(distances)


def test_model_is_left_as_it_was():
    model, items = gpt2(), sequences()
    model.train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    state = torch.get_rng_state()
    sequence_fisher(model, items)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# Classification


def bert(kind, labels=3):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    rest = {"intermediate_size": 12, "max_position_embeddings": 16, "num_labels": labels}
    return kind(BertConfig(vocab_size=VOCABULARY, **sizes, **rest))


def test_sequence_classification_against_a_loop():
    model, items = bert(BertForSequenceClassification), sequences()
    for i, item in enumerate(items):
        item["label"] = i % 3
    oracle = copy.deepcopy(model).double().eval()
    expected = {n: torch.zeros_like(p) for n, p in oracle.named_parameters()}
    empirical = {n: torch.zeros_like(p) for n, p in oracle.named_parameters()}
    for item in items:
        log_p = oracle(torch.tensor([item["input_ids"]])).logits[0].log_softmax(0)
        for c in range(3):
            oracle.zero_grad()
            log_p[c].backward(retain_graph=True)
            for n, p in oracle.named_parameters():
                expected[n] += log_p[c].exp().item() * p.grad.square() / len(items)
                if c == item["label"]:
                    empirical[n] += p.grad.square() / len(items)
    assert_fisher_close(sequence_fisher(model, items, "exact"), expected)
    assert_fisher_close(sequence_fisher(model, items, "empirical"), empirical)


def test_token_classification_sums_over_tokens():
    model, items = bert(BertForTokenClassification), sequences((5, 3))
    for item in items:
        item["labels"] = [token % 3 for token in item["input_ids"]]
    oracle = copy.deepcopy(model).double().eval()
    expected = {n: torch.zeros_like(p) for n, p in oracle.named_parameters()}
    for item in items:
        log_p = oracle(torch.tensor([item["input_ids"]])).logits[0].log_softmax(-1)
        oracle.zero_grad()
        sum(log_p[t, label] for t, label in enumerate(item["labels"])).backward()
        for n, p in oracle.named_parameters():
            expected[n] += p.grad.square() / len(items)
    assert_fisher_close(sequence_fisher(model, items, "empirical"), expected)


def classification_loop(model, items, score):
    """Return the Fisher of unpadded texts in float64 from ``score(logits, item)``, its terms."""
    model = copy.deepcopy(model).double().eval()
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for item in items:
        logits = model(torch.tensor([item["input_ids"]])).logits[0]
        for log_p, weight in score(logits, item):
            model.zero_grad()
            log_p.backward(retain_graph=True)
            for n, p in model.named_parameters():
                total[n] += 0 if p.grad is None else weight * p.grad.square() / len(items)
    return total


def squared_error(logits, item):
    return [(-(logits - torch.tensor(item["label"])).square().sum(), 1.0)]


def cross_entropy_of_each(logits, item):
    y = torch.tensor(item["label"], dtype=torch.float64)
    return [(-functional.binary_cross_entropy_with_logits(logits, y, reduction="sum"), 1.0)]


@pytest.mark.parametrize(
    ("labels", "options", "score"),
    [
        ([0.5, -1.0, 2.0, 0.0], {"num_labels": 1}, squared_error),
        ([1, 0, 0, 1], {"num_labels": 1}, squared_error),
        (
            [[0.5, 1.0], [0.0, 2.0], [1.0, 1.0], [3.0, 0.5]],
            {"problem_type": "regression"},
            squared_error,
        ),
        (
            [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]],
            {"problem_type": "multi_label_classification"},
            cross_entropy_of_each,
        ),
    ],
)
def test_what_the_configuration_says_the_outputs_are(labels, options, score):
    model, items = bert(BertForSequenceClassification, labels=2), sequences()
    if options.pop("num_labels", 2) == 1:
        model = bert(BertForSequenceClassification, labels=1)
    model.config.problem_type = options.get("problem_type")
    items = [item | {"label": label} for item, label in zip(items, labels, strict=True)]
    actual = sequence_fisher(model, items, "empirical")
    assert_fisher_close(actual, classification_loop(model, items, score))
    assert all(
        v.sum() > 0 for n, v in sequence_fisher(model, items, "exact").items() if "classifier" in n
    )


def test_labels_that_are_no_classes():
    model = bert(BertForSequenceClassification, labels=3)
    items = [item | {"label": 0.5} for item in sequences()]
    with pytest.raises(ValueError, match="problem_type to 'regression' or 'multi_label"):
        sequence_fisher(model, items)


# Encoders with a decoder


def t5():
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes, **tokens, initializer_factor=1.0))


def bart():
    torch.manual_seed(0)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.5}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    widths = {"encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "vocab_size": VOCABULARY}
    return BartForConditionalGeneration(BartConfig(**sizes, **heads, **tokens, **widths))


def whisper():
    torch.manual_seed(0)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 4}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.5}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    widths = {"encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "vocab_size": VOCABULARY}
    places = {"max_source_positions": 5, "max_target_positions": 16}
    return WhisperForConditionalGeneration(
        WhisperConfig(**sizes, **heads, **tokens, **widths, **places)
    )


def translations(make, seed=3):
    g = torch.Generator().manual_seed(seed)
    sources = sequences((6, 3, 5, 9))
    if make is whisper:
        sources = [{"input_features": torch.randn(4, 10, generator=g)} for _ in sources]
    targets = [torch.randint(3, VOCABULARY, (n,), generator=g).tolist() for n in (2, 5, 1, 3)]
    return [source | {"labels": target} for source, target in zip(sources, targets, strict=True)]


def translation_loop(model, items, estimator):
    """The model itself shifts the labels, as in training."""
    model = copy.deepcopy(model).double().eval()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for item in items:
        inputs = {n: torch.as_tensor(v)[None] for n, v in item.items()}
        inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
        log_p = model(**inputs).logits[0].log_softmax(-1)
        terms = [
            (c, log_p[t, c].exp().item()) for t in range(len(log_p)) for c in range(VOCABULARY)
        ]
        if estimator == "empirical":
            scores = [(sum(log_p[t, c] for t, c in enumerate(item["labels"])), 1.0)]
        else:
            scores = [(log_p[i // VOCABULARY, c], w) for i, (c, w) in enumerate(terms)]
        for score, weight in scores:
            gradients = torch.autograd.grad(
                score, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += weight * gradient.square() / len(items)
    return total


@pytest.mark.parametrize("make", [t5, bart, whisper])
@pytest.mark.parametrize(
    ("estimator", "batch_size"), [("empirical", None), ("empirical", 1), ("exact", None)]
)
def test_encoders_with_a_decoder_against_a_loop(make, estimator, batch_size):
    model, items = make(), translations(make)
    actual = sequence_fisher(model, items, estimator, batch_size=batch_size)
    assert_fisher_close(actual, translation_loop(model, items, estimator), rtol=1e-4)


def test_a_decoder_gets_the_inputs_that_the_data_has():
    model, items = bart(), translations(bart)
    expected = translation_loop(model, items, "empirical")
    for item in items:
        item["decoder_input_ids"] = [2, *item["labels"][:-1]]
    assert_fisher_close(sequence_fisher(model, items, "empirical"), expected)


@pytest.mark.parametrize("task", ["causal_lm", "token_classification"])
def test_an_encoder_with_a_decoder_has_no_other_task(task):
    with pytest.raises(ValueError, match="task must be 'seq2seq_lm' for T5ForConditional"):
        sequence_fisher(t5(), translations(t5), task=task)
    with pytest.raises(ValueError, match="'seq2seq_lm' needs an encoder with a decoder, not a GPT"):
        sequence_fisher(gpt2(), sequences(), task="seq2seq_lm")
    with pytest.raises(ValueError, match="must have labels, the texts"):
        sequence_fisher(t5(), sequences())


# Padding


def gpt2_classifier():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=8,
        n_layer=1,
        n_head=2,
        pad_token_id=3,
        num_labels=3,
    )
    return GPT2ForSequenceClassification(config)


def xlnet():
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=VOCABULARY,
        d_model=8,
        n_layer=1,
        n_head=2,
        d_inner=12,
        num_labels=3,
        pad_token_id=3,
    )
    return XLNetForSequenceClassification(config)


def bert_classifier():
    return bert(BertForSequenceClassification)


def texts():
    """Without the pad token."""
    return [{"input_ids": [t if t != 3 else 2 for t in i["input_ids"]]} for i in sequences()]


def batch_of(items, side, token, margin=0):
    width = max(len(item["input_ids"]) for item in items) + margin
    rows = {"input_ids": [], "attention_mask": []}
    for item in items:
        ids = item["input_ids"]
        for name, values, fill in (
            ("input_ids", ids, token),
            ("attention_mask", [1] * len(ids), 0),
        ):
            rest = [fill] * (width - len(ids))
            rows[name].append(rest + values if side == "left" else values + rest)
    return {name: torch.tensor(values) for name, values in rows.items()}


@pytest.mark.parametrize("margin", [0, 2])
@pytest.mark.parametrize(
    ("make", "side", "token", "right"),
    [
        (gpt2, "left", 3, True),
        (gpt2, "right", 0, True),
        (llama, "left", 3, True),
        (llama, "right", 3, True),
        (bert_classifier, "left", 3, False),  # it classifies by the first place
        (bert_classifier, "right", 3, True),
        (gpt2_classifier, "left", 3, True),
        (gpt2_classifier, "right", 3, True),
        (gpt2_classifier, "right", 0, False),  # not the pad token: it classifies by a padded place
        (xlnet, "left", 3, True),
        (xlnet, "right", 3, False),  # it classifies by the last place
        (t5, "left", 0, True),
        (bart, "right", 1, True),
        (bart, "left", 1, False),  # its places are numbered from the edge
    ],
)
def test_padding_is_ignored_or_refused(make, side, token, right, margin):
    model, items = make(), texts()
    model.eval()
    extra = {}
    if make in (t5, bart):
        items = [item | {"labels": [4, 5]} for item in items]
        extra = {"labels": torch.tensor([[4, 5]] * 4)}
    elif "SequenceClassification" in type(model).__name__:
        items = [item | {"label": n % 3} for n, item in enumerate(items)]
        extra = {"labels": torch.arange(4) % 3}
    expected = sequence_fisher(model, items, "empirical", batch_size=1)
    batch = batch_of(items, side, token, margin) | extra
    if right:
        actual = sequence_fisher(model, batch, "empirical")
        assert_fisher_close(actual, {n: v.double() for n, v in expected.items()})
    else:
        with pytest.raises(
            ValueError, match=f"does not ignore padding on the {side}.*batch_size=1"
        ):
            sequence_fisher(model, batch, "empirical")


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_padding_of_sound(norm):
    model = wav2vec2(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    items = speech()
    if norm == "layer":
        sequence_fisher(model, items)
        return
    with pytest.raises(ValueError, match="does not ignore padding on the right"):
        sequence_fisher(model, items)
    sequence_fisher(model, items, batch_size=1)


def test_the_default_collator_pads_with_the_models_token():
    model, items = gpt2_classifier(), texts()
    items = [item | {"label": n % 3} for n, item in enumerate(items)]
    batch = collator(model)(items)
    assert batch["input_ids"][1].tolist() == [*items[1]["input_ids"], *[3] * 6]
    with torch.no_grad():
        together = model.eval()(**batch).logits
        alone = [model(torch.tensor([item["input_ids"]])).logits for item in items]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_labels_are_made_of_the_inputs_of_a_causal_model_alone():
    items = sequences((4, 2))
    batch = collator(gpt2())(items)
    assert batch["labels"].tolist() == [items[0]["input_ids"], [*items[1]["input_ids"], -100, -100]]
    assert collator(gpt2())([{**items[0], "labels": [-100, 1, 2, 3]}])["labels"].tolist() == [
        [-100, 1, 2, 3]
    ]
    assert "labels" not in collator(gpt2_classifier())(items)


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([{"input_ids": [1, 2]}, {"input_ids": [1]}], "need pad_token_id.*collator"),
        ([{"input_ids": [1], "label": 0}, {"input_ids": [1]}], "every sample must have 'label'"),
    ],
)
def test_what_cannot_be_padded(items, sentence):
    with pytest.raises(ValueError, match=sentence):
        pad_batch(items)


@pytest.mark.parametrize("lengths", [(1,), (1, 1), (1, 4, 1), (4, 1)])
@pytest.mark.parametrize("estimator", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_text_of_one_token_foretells_nothing(lengths, estimator, batch_size):
    model, items = gpt2(), sequences(lengths)
    actual = sequence_fisher(model, items, estimator, batch_size=batch_size)
    expected = token_loop(model, items, estimator)
    if estimator == "sampled":
        some = any(v.any() for v in actual.values())
        assert some == any(v.any() for v in expected.values())
    else:
        assert_fisher_close(actual, expected, rtol=1e-5)


# CTC


def all_texts(log_p, blank=0):
    """Return p(text) for every text, by going through every path of (T, C) frames."""
    T, C = log_p.shape
    total = {}
    for path in itertools.product(range(C), repeat=T):
        text = tuple(s for i, s in enumerate(path) if s != blank and (not i or s != path[i - 1]))
        p = sum(log_p[t, s] for t, s in enumerate(path)).exp()
        total[text] = total.get(text, 0.0) + p
    return total


def labelled(text, frames, width=5):
    return torch.tensor([[frames, *text, *[-100] * (width - len(text))]])


def test_ctc_score_is_that_of_all_alignments():
    torch.manual_seed(0)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    padded = torch.cat([z.detach(), torch.randn(2, 3, dtype=torch.float64)])[None]
    for text, p in all_texts(z.log_softmax(-1)).items():
        (expected,) = torch.autograd.grad(-p.log(), z, retain_graph=True)
        score = CTC(blank=0).score(padded, labelled(text, 4))[0]
        assert torch.allclose(score[:4], expected, atol=1e-10)
        assert not score[4:].any()  # frames of padding


def test_ctc_draws_texts_by_their_probability():
    torch.manual_seed(1)
    z = torch.randn(1, 4, 3)
    n = 40_000
    draws = Draws(torch.Generator().manual_seed(0))
    labels = torch.full((n, 1), 3)  # the fourth frame is padding
    drawn = CTC(blank=0).sample(z.expand(n, -1, -1), labels, draws)
    assert (drawn[:, 0] == 3).all()
    texts, counts = drawn[:, 1:].unique(dim=0, return_counts=True)
    found = {tuple(s for s in t if s >= 0): c for t, c in zip(texts.tolist(), counts, strict=True)}
    expected = all_texts(z[0, :3].log_softmax(-1))
    assert found.keys() <= expected.keys()
    for text, p in expected.items():
        error = math.sqrt(p * (1 - p) / n)
        assert abs(found.get(text, 0) / n - p) < 5 * error


def wav2vec2(**options):
    torch.manual_seed(0)
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 3), "conv_stride": (3, 2)}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    rest = {"intermediate_size": 12, "num_conv_pos_embeddings": 3, "vocab_size": 5}
    groups = {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}
    # With "group" norm the model itself sees how much padding there is.
    norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "pad_token_id": 0}
    defaults = norm | {"ctc_loss_reduction": "sum", "bos_token_id": 1, "eos_token_id": 2}
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(**convolutions, **sizes, **rest, **groups, **defaults | options)
    )


def speech():
    g = torch.Generator().manual_seed(2)
    texts = ([3, 4], [1, 1, 2], [2])
    lengths = (60, 80, 47)
    return [
        {"input_values": torch.randn(n, generator=g), "labels": text}
        for n, text in zip(lengths, texts, strict=True)
    ]


def test_ctc_model_against_a_loop():
    model, items = wav2vec2(), speech()
    oracle = copy.deepcopy(model).double().eval()
    expected = {n: torch.zeros_like(p) for n, p in oracle.named_parameters()}
    for item in items:
        oracle.zero_grad()
        labels = torch.tensor([item["labels"]])
        oracle(input_values=item["input_values"][None].double(), labels=labels).loss.backward()
        for n, p in oracle.named_parameters():
            expected[n] += 0 if p.grad is None else p.grad.square() / len(items)
    assert_fisher_close(sequence_fisher(model, items, "empirical"), expected)


def test_ctc_draws_do_not_depend_on_padding():
    model, items = wav2vec2(), speech()
    model.freeze_feature_encoder()
    together = sequence_fisher(model, items, "sampled")
    alone = sequence_fisher(model, items, "sampled", batch_size=1)
    assert_fisher_close(together, {n: v.double() for n, v in alone.items()}, rtol=1e-4)
    assert not any("feature_extractor" in name for name in together)


@pytest.mark.parametrize("estimator", ["exact", "argmax"])
def test_ctc_has_no_exact(estimator):
    with pytest.raises(ValueError, match="impossible for CTC.*'sampled' or 'empirical'"):
        sequence_fisher(wav2vec2(), speech(), estimator)


def test_a_text_that_does_not_fit_its_sound():
    items = speech()
    items[0]["labels"] = [3] * 8
    with pytest.raises(ValueError, match="8 symbols cannot be read off 9 frames"):
        sequence_fisher(wav2vec2(), items, "empirical")
    fisher = sequence_fisher(wav2vec2(ctc_zero_infinity=True), items, "empirical")
    rest = sequence_fisher(wav2vec2(), items[1:], "empirical")
    assert_fisher_close(fisher, {n: 2 / 3 * v.double() for n, v in rest.items()})


# Consolidate


def test_consolidate_measures_what_is_protected_and_nothing_else():
    model, items = gpt2(), sequences()
    model.transformer.wte.weight.requires_grad_(False)
    ewc = EWC(model, lam=2.0, include="*c_attn*")
    consolidate(ewc, items, "empirical")
    expected = token_loop(model, items)
    for name, value in ewc.importance.items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-4, atol=1e-9)
        assert torch.equal(ewc.anchor[name], model.get_parameter(name))
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["transformer.wte.weight"]
    consolidate(ewc, items, weight=3.0)
    assert ewc.n_tasks == 2


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"estimator": "batched"}, ValueError, "estimator must be one of sampled, empirical"),
        ({"task": "translation"}, ValueError, "task must be one of causal_lm"),
        ({"n_samples": 0}, ValueError, "n_samples must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"n_samples": True}, TypeError, "n_samples must be a whole number or None, not True"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number or None, not 2.5"),
        ({"data": 3}, TypeError, "data must be a data set of dicts"),
        ({"data": []}, ValueError, "empty"),
        ({"data": [(1, 2)]}, TypeError, "data must hold dicts"),
        ({"data": iter([(1, 2)])}, TypeError, "data must hold dicts"),
        ({"data": [{"text": "a"}]}, ValueError, "must have one of input_ids"),
        ({"data": {"input_ids": [[1, 2], [3]]}}, ValueError, "must be a tensor.* not list"),
        (
            {"data": {"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(1, 3).long()}},
            ValueError,
            "labels must have a row for each of the 2 sequences",
        ),
        (
            {"data": {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2)}},
            ValueError,
            "attention_mask must have shape",
        ),
        ({"data": {"input_ids": torch.zeros(3).long()}}, ValueError, "2 dimensions.*not .3,."),
    ],
)
def test_errors_say_what_would_be_right(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        sequence_fisher(**{"model": gpt2(), "data": sequences(), **arguments})


def test_the_task_is_told_by_the_name_of_the_class():
    assert infer_task(gpt2()) == "causal_lm"
    assert infer_task(wav2vec2()) == "ctc"
    with pytest.raises(ValueError, match="pass task"):
        infer_task(gpt2().transformer)


def test_the_package_works_without_transformers():
    code = """
import sys
sys.modules["transformers"] = sys.modules["peft"] = None  # as if they were not installed
import ewc_tutorial
try:
    import ewc_tutorial.huggingface
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    sentence = "ewc_tutorial.huggingface needs Transformers: pip install "
    assert result.stdout.strip() == sentence + "'ewc-tutorial[huggingface]'", result.stderr


def test_without_peft_only_lora_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft.tuners.lora", None)
    with pytest.raises(ImportError, match="needs PEFT: pip install 'ewc-tutorial.huggingface.'"):
        LoraEWC(gpt2())


def test_kronecker_factors_of_sequences_against_a_loop():
    model, items = llama().double(), sequences((5, 5, 5))
    ewc = EWC(model, curvature="kronecker")
    path = "model.layers.0.self_attn.q_proj"
    assert ewc.explain()[f"{path}.weight"].startswith("Kronecker: A 8², G 8²")
    found = ewc.measure(items, "empirical", fisher=sequence_fisher)
    seen = []
    layer = model.get_submodule(path)
    layer.register_forward_hook(lambda module, args, out: seen.append((args[0].detach(), out)))
    A = G = 0.0
    for item in items:
        seen.clear()
        ids = torch.tensor([item["input_ids"]])
        log_p = model(ids).logits[0, :-1].log_softmax(-1)
        score = log_p.gather(1, ids[0, 1:, None]).sum()
        (a, out) = seen[0]
        (g,) = torch.autograd.grad(score, out)
        A, G = A + a[0].T @ a[0] / 5 / 3, G + g[0].T @ g[0] / 3
    torch.testing.assert_close(found[f"{path}.weight:A"], A)
    torch.testing.assert_close(found[f"{path}.weight:G"], G)
    diagonal = sequence_fisher(model, items, "empirical")
    torch.testing.assert_close(found["model.norm.weight"], diagonal["model.norm.weight"])
    consolidate(ewc, items, "empirical")
    assert ewc.n_tasks == 1


def test_exact_eigenvalues_of_sequences_have_the_trace_of_their_diagonal():
    """The same labels are drawn for the factors, for their eigenvalues, and for the diagonal."""
    model, items = llama().double(), sequences((5, 3, 7))
    ewc = EWC(model, curvature=Kronecker(eigenvalues="exact"))
    options = {"estimator": "sampled", "generator": 3, "fisher": sequence_fisher}
    found = ewc.measure(items, **options)
    diagonal = sequence_fisher(model, items, "sampled", generator=3)
    layers = [name.removesuffix(":E") for name in found if name.endswith(":E")]
    assert layers
    for weight in layers:
        torch.testing.assert_close(found[f"{weight}:E"].sum(), diagonal[weight].sum())
    ewc.consolidate(items, **options)
