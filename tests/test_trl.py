"""EWC in TRL's trainers: a mixin is all it takes, completion-only and packed data included."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed (the extra frameworks)")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ewc_tutorial import EWC
from ewc_tutorial.huggingface import EWCTrainerMixin, consolidate, sequence_fisher

pytestmark = pytest.mark.slow

WORDS = [
    "<pad>", "<eos>", "who", "grows", "what", "keeps",
    "ann", "ben", "pears", "plums", "cats", "owls",
]  # fmt: skip
LR, LAM, STEPS = 0.1, 0.5, 3
OLD = [
    {"prompt": "who grows pears", "completion": " ann"},
    {"prompt": "what keeps", "completion": " ben owls"},
]
NEW = [
    {"prompt": "who grows", "completion": " pears ann"},
    {"prompt": "who keeps what", "completion": " cats"},
    {"prompt": "what grows ann", "completion": " plums plums"},
]


class Tuner(EWCTrainerMixin, SFTTrainer):
    """All that a user writes."""


class PreferenceTuner(EWCTrainerMixin, DPOTrainer):
    """Likewise."""


@pytest.fixture
def tokenizer():
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def network():
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), **sizes, **special, **off))


@pytest.fixture
def model():
    return network()


def twin_of(model):
    """Return a model with the same weights: a deep copy would have the first one's forward, which
    the trainer has wrapped."""
    twin = network()
    twin.load_state_dict(model.state_dict())
    return twin


def by_hand(examples) -> list[tuple[torch.Tensor, int]]:
    """Return each example's tokens, and how many of them are its prompt."""
    found = []
    for example in examples:
        prompt, completion = (example[part].split() for part in ("prompt", "completion"))
        ids = [WORDS.index(word) for word in [*prompt, *completion, "<eos>"]]
        found.append((torch.tensor(ids), len(prompt)))
    return found


def log_likelihood(model, ids, n_prompt):
    """Return the summed log-probability of what follows the prompt, and how many tokens that is."""
    log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    picked = log_p[:-1].gather(1, ids[1:, None])[n_prompt - 1 :]
    return picked.sum(), len(picked)


def fisher_by_hand(model, examples):
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for ids, n_prompt in by_hand(examples):
        model.zero_grad()
        log_likelihood(model, ids, n_prompt)[0].backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.square() / len(examples)
    model.zero_grad()
    return total


def tuner(model, tokenizer, folder, examples, ewc=None, packing=False):
    arguments = SFTConfig(
        str(folder), max_steps=STEPS, packing=packing, completion_only_loss=True, max_length=24,
        per_device_train_batch_size=8, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", disable_tqdm=True, lr_scheduler_type="constant", max_grad_norm=0.0,
        save_strategy="no",
    )  # fmt: skip
    return Tuner(
        model, arguments, train_dataset=Dataset.from_list(examples), processing_class=tokenizer,
        optimizers=(torch.optim.SGD(model.parameters(), lr=LR), None),
        ewc=EWC(model) if ewc is None else ewc,
    )  # fmt: skip


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("through", ["data set", "loader"])
def test_the_fisher_counts_completions_alone_and_sequences_one_by_one(
    model, tokenizer, tmp_path, packing, through
):
    trainer = tuner(model, tokenizer, tmp_path, OLD, packing=packing)
    expected = fisher_by_hand(twin_of(model), OLD)
    if through == "data set":
        options = {"data": trainer.train_dataset, "collate": trainer.data_collator}
    else:
        options = {"data": trainer.get_train_dataloader()}
    found = sequence_fisher(model, estimator="empirical", **options)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("packing", [False, True])
def test_training_is_that_of_a_loop_with_the_penalty(model, tokenizer, tmp_path, packing):
    ewc = EWC(model, lam=LAM)
    old = tuner(model, tokenizer, tmp_path / "old", OLD, packing=packing)
    consolidate(ewc, old.train_dataset, "empirical", collate=old.data_collator)
    with torch.no_grad():  # away from the anchor, so that the penalty counts at once
        torch.manual_seed(1)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    F, anchor = ewc.importance, {n: p.clone() for n, p in ewc.anchor.items()}
    twin = twin_of(model)
    tuner(model, tokenizer, tmp_path / "new", NEW, ewc, packing).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sums, counts = zip(
            *(log_likelihood(twin, *example) for example in by_hand(NEW)), strict=True
        )
        named = dict(twin.named_parameters())
        penalty = sum((F[n] * (named[n] - anchor[n]).square()).sum() for n in F)
        (-sum(sums) / sum(counts) + LAM / 2 * penalty).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, named[name], rtol=1e-3, atol=1e-5)


PAIRS = [
    {"prompt": "who grows", "chosen": " pears ann", "rejected": " cats"},
    {"prompt": "who keeps what", "chosen": " cats", "rejected": " plums ben"},
]
BETA = 0.3


def preference_tuner(model, tokenizer, folder, ewc, update="gradient"):
    arguments = DPOConfig(
        str(folder), max_steps=STEPS, beta=BETA, max_length=24, per_device_train_batch_size=8,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        disable_tqdm=True, lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no",
    )  # fmt: skip
    return PreferenceTuner(
        model, args=arguments, ref_model=twin_of(model), train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer, optimizers=(torch.optim.SGD(model.parameters(), lr=LR), None),
        ewc=ewc, ewc_update=update,
    )  # fmt: skip


def preference_loss(model, reference):
    """Return −log σ(β·(chosen − rejected)), each a log-ratio to the reference (Rafailov et al.
    2023, equation 7)."""
    losses = []
    for pair in PAIRS:
        ratios = []
        for answer in ("chosen", "rejected"):
            ((ids, n),) = by_hand([{"prompt": pair["prompt"], "completion": pair[answer]}])
            with torch.no_grad():
                before = log_likelihood(reference, ids, n)[0]
            ratios.append(log_likelihood(model, ids, n)[0] - before)
        losses.append(-torch.nn.functional.logsigmoid(BETA * (ratios[0] - ratios[1])))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_preferences_are_learned_as_in_a_loop_with_the_penalty(model, tokenizer, tmp_path, update):
    """The Fisher is that of the old task, here a language model's: what is new does not matter."""
    ewc = EWC(model, lam=LAM)
    old = tuner(model, tokenizer, tmp_path / "old", OLD)
    consolidate(ewc, old.train_dataset, "empirical")  # without the trainer's collator
    F, anchor = fisher_by_hand(twin_of(model), OLD), dict(twin_of(model).named_parameters())
    with torch.no_grad():
        torch.manual_seed(1)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    twin, reference = twin_of(model), twin_of(model)
    trainer = preference_tuner(model, tokenizer, tmp_path / "new", ewc, update)
    trainer.train()
    named = dict(twin.named_parameters())
    for _ in range(STEPS):
        twin.zero_grad()
        preference_loss(twin, reference).backward()
        with torch.no_grad():
            for name, p in named.items():
                pull = LAM * F[name]
                if update == "gradient":
                    p.sub_(LR * (p.grad + pull * (p - anchor[name])))
                else:
                    p.copy_((p - LR * p.grad + LR * pull * anchor[name]) / (1 + LR * pull))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, named[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("through", ["data set", "loader", "plain data set"])
def test_preferences_are_no_texts_to_keep(model, tokenizer, tmp_path, through):
    trainer = preference_tuner(model, tokenizer, tmp_path, EWC(model))
    data = {
        "data set": trainer.train_dataset,
        "loader": trainer.get_train_dataloader(),
        "plain data set": PAIRS,
    }
    with pytest.raises(ValueError, match="data holds preferences .* rejected answers are nothing"):
        sequence_fisher(model, data[through])
