"""Made-up facts for a small language model: the instances of notebook 09.

Each instance is a list of invented people with what they grow and what they keep, in the same two
sentence forms: "dabof grows pears." An instance has other people than the ones before it, and
nothing else is new, which is *instance-incremental learning*.

Transformers is imported only where a model is made or trained; install it with
``pip install 'ewc-tutorial[huggingface]'``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: The tokens: one character each; 0 is the beginning of a sequence and the padding.
CHARACTERS = "\n .abcdefghijklmnopqrstuvwxyz"
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
PLANTS = "apples beans cherries dates figs grapes kale lemons melons nuts olives pears plums rice"
ANIMALS = "bears cats dogs eels foxes geese hens lions mice owls pigs rats seals wolves"
VERBS = {"grows": PLANTS.split(" "), "keeps": ANIMALS.split(" ")}
#: Characters of the longest answer, its full stop included.
LONGEST = max(len(word) for words in VERBS.values() for word in words) + 1


@dataclass(frozen=True)
class Fact:
    """A sentence to be remembered: ``prompt`` is given, ``answer`` is asked for."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return f"{self.prompt}{self.answer}."


def encode(text: str) -> list[int]:
    """Return the tokens of a text, a beginning-of-sequence token before them."""
    return [0, *(CHARACTERS.index(character) for character in text)]


def decode(tokens: Sequence[int] | Tensor) -> str:
    """Return the text of tokens."""
    return "".join(CHARACTERS[int(token)] for token in tokens).strip("\n")


def instances(n: int = 3, people: int = 24, seed: int = 0) -> list[list[Fact]]:
    """Return ``n`` lists of facts about ``people`` new people each, who have two facts each."""
    g = torch.Generator().manual_seed(seed)

    def draw(letters: Sequence[str]) -> str:
        return letters[int(torch.randint(len(letters), (), generator=g))]

    names: dict[str, None] = {}
    while len(names) < n * people:
        syllables = (CONSONANTS, VOWELS, CONSONANTS, VOWELS, CONSONANTS)
        names["".join(draw(letters) for letters in syllables)] = None
    everyone = list(names)
    return [
        [
            Fact(f"{name} {verb} ", draw(words))
            for name in everyone[i * people : (i + 1) * people]
            for verb, words in VERBS.items()
        ]
        for i in range(n)
    ]


def items(facts: Sequence[Fact]) -> list[dict[str, list[int]]]:
    """Return facts as a data set for a causal language model: the labels are the inputs."""
    tokens = [encode(fact.text) for fact in facts]
    return [{"input_ids": ids, "labels": ids} for ids in tokens]


def tiny_gpt(seed: int = 0, width: int = 48, layers: int = 2, heads: int = 4) -> nn.Module:
    """Return a small untrained GPT-2 over characters, without dropout (60,000 weights)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 48, "n_embd": width, "n_layer": layers, "n_head": heads}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"vocab_size": len(CHARACTERS), "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**tokens, **sizes, **no_dropout))
    # Tells the Trainer that the labels are shifted, so that it divides the loss by the right number
    # of tokens; other classes of causal language models say so themselves.
    model.loss_type = "ForCausalLM"
    return model.eval()


def with_adapter(model: nn.Module, rank: int = 8, seed: int = 0) -> nn.Module:
    """Return the model with a fresh LoRA adapter on all its linear layers, the rest frozen."""
    from peft import LoraConfig, get_peft_model

    layers = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, fan_in_fan_out=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    adapted.loss_type = model.loss_type
    return adapted.eval()


def perplexity(model: nn.Module, facts: Sequence[Fact]) -> float:
    """Return exp of the mean loss per token: 1 for a model that is certain and right."""
    from ewc_tutorial.huggingface import collator

    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in collator(model)(items(facts)).items()}
    training = model.training
    model.eval()
    with torch.no_grad():
        loss = model(**batch).loss.item()
    model.train(training)
    return math.exp(min(loss, 50.0))


@torch.no_grad()
def loss_by_part(model: nn.Module, facts: Sequence[Fact]) -> dict[str, float]:
    """Return −log p of each part of a sentence, in nats, a mean over facts.

    The parts are the person's name, the form (the verb and the spaces around it), and the answer
    with its full stop; together they are −log p of the sentence.
    """
    device = next(model.parameters()).device
    total = dict.fromkeys(("name", "form", "answer"), 0.0)
    for fact in facts:
        tokens = torch.tensor(encode(fact.text), device=device)
        log_p = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        loss = -log_p.gather(1, tokens[1:, None])[:, 0]
        name, prompt = fact.prompt.index(" "), len(fact.prompt)
        for part, terms in zip(total, loss.tensor_split((name, prompt)), strict=True):
            total[part] += terms.sum().item() / len(facts)
    return total


@torch.no_grad()
def answers(model: nn.Module, facts: Sequence[Fact]) -> list[str]:
    """Return what the model writes after each prompt, up to the full stop, token by token."""
    prompts = [encode(fact.prompt) for fact in facts]
    device, training = next(model.parameters()).device, model.training
    model.eval()
    written = {}
    for length in {len(prompt) for prompt in prompts}:
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        x = torch.tensor([prompts[i] for i in rows], device=device)
        for _ in range(LONGEST):
            x = torch.cat([x, model(x).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        for i, row in zip(rows, x[:, length:].tolist(), strict=True):
            written[i] = decode(row).split(".")[0]
    model.train(training)
    return [written[i] for i in range(len(facts))]


def recall(model: nn.Module, facts: Sequence[Fact]) -> float:
    """Return the share of facts whose answer the model writes exactly."""
    written = answers(model, facts)
    return sum(w == f.answer for w, f in zip(written, facts, strict=True)) / len(facts)


def rise_along(
    model: nn.Module, facts: Sequence[Fact], step: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return by how much the loss on facts rises along a step, and what its derivatives predict.

    The loss is the mean of −log p(sentence) in nats; no labels are drawn.

    Args:
        model: a causal language model over the characters, in eval mode.
        facts: what the loss is about.
        step: Δ, one tensor per parameter.

    Returns:
        ``"whole F"``: ½ ΔᵀFΔ with the exact Fisher matrix of sentences. The next tokens are those
        of the model, given the true tokens before them, so their scores are uncorrelated and a
        sentence's F is the sum of its tokens'. ``"Hessian"``: ½ ΔᵀHΔ. ``"slope"``: gᵀΔ with the
        gradient g. ``"truth"``: the rise itself.
    """
    from torch.func import functional_call, jvp
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from ewc_tutorial.huggingface import pad_batch

    batch = pad_batch(items(facts), pad_token_id=0)
    targets = batch["labels"][:, 1:]
    counts = targets != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}

    def logits(at: Mapping[str, Tensor]) -> Tensor:
        return functional_call(model, dict(at), (), inputs).logits[:, :-1]

    def loss(at: Mapping[str, Tensor]) -> Tensor:
        log_p = logits(at).log_softmax(-1)
        return -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0][counts].sum() / len(facts)

    # The fused kernels of attention have one derivative only.
    with sdpa_kernel(SDPBackend.MATH):
        z, moved = jvp(logits, (weights,), (dict(step),))
        gradient = torch.autograd.grad(loss(weights), [*weights.values()], create_graph=True)
        slope = sum((g * step[name]).sum() for name, g in zip(weights, gradient, strict=True))
        bent = torch.autograd.grad(slope, [*weights.values()])
        curved = sum((h * step[name]).sum() for name, h in zip(weights, bent, strict=True))
        with torch.no_grad():
            ahead = loss({name: w + step[name] for name, w in weights.items()}) - loss(weights)
    p = z.softmax(-1)
    variance = (p * moved**2).sum(-1) - (p * moved).sum(-1) ** 2
    return {
        "whole F": (variance[counts].sum() / len(facts) / 2).item(),
        "Hessian": curved.item() / 2,
        "slope": slope.item(),
        "truth": ahead.item(),
    }


def train_quietly(
    model: nn.Module,
    facts: Sequence[Fact],
    *,
    ewc: Any = None,
    steps: int = 200,
    lr: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
    watch: Mapping[str, Sequence[Fact]] | None = None,
    every: int = 20,
    ewc_update: str = "gradient",
) -> dict[str, list[float]]:
    """Train with :class:`EWCTrainer` (AdamW, falling learning rate), printing and storing nothing.

    Args:
        model: a causal language model over the characters.
        facts: what to learn.
        ewc: a penalty, or None.
        steps, lr, batch_size, seed: of the training.
        watch: sets of facts whose perplexity is followed.
        every: steps between measurements of these.
        ewc_update: as for :class:`EWCTrainer`.

    Returns:
        ``step`` and, per name in ``watch``, the perplexity at each of these steps.
    """
    from transformers import PrinterCallback, TrainingArguments

    from ewc_tutorial.huggingface import EWCTrainer, collator

    curves: dict[str, list[float]] = {"step": [], **{name: [] for name in watch or {}}}
    with tempfile.TemporaryDirectory() as folder:
        trainer = EWCTrainer(
            model,
            TrainingArguments(
                folder,
                max_steps=steps,
                learning_rate=lr,
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=256,
                seed=seed,
                eval_strategy="steps" if watch else "no",
                eval_steps=every,
                eval_on_start=bool(watch),
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=next(model.parameters()).device.type == "cpu",
            ),
            data_collator=collator(model),
            train_dataset=items(facts),
            eval_dataset={name: items(some) for name, some in (watch or {}).items()} or None,
            ewc=ewc,
            ewc_update=ewc_update,
        )
        trainer.remove_callback(PrinterCallback)
        with torch.random.fork_rng(devices=[]):
            trainer.train()
    for entry in trainer.state.log_history:
        for name in watch or {}:
            if f"eval_{name}_loss" in entry:
                curves[name].append(math.exp(min(entry[f"eval_{name}_loss"], 50.0)))
                if name == next(iter(watch)):
                    curves["step"].append(entry["step"])
    return curves
