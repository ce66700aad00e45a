"""EWC and LoRA: what the Fisher information of A and B says, and a penalty that means Δ = s·BA."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from fisher_oracle import assert_fisher_close

pytest.importorskip("transformers")
pytest.importorskip("peft")
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TrainingArguments,
)

from ewc_tutorial import EWC, diagnose
from ewc_tutorial.huggingface import (
    EWCTrainer,
    LoraEWC,
    collator,
    consolidate,
    sequence_fisher,
)
from ewc_tutorial.unlearning import TaskMemory

#: These load Transformers, which takes as long as many a test.
pytestmark = pytest.mark.slow

VOCABULARY = 7


def gpt2(seed=0):
    torch.manual_seed(seed)
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**tokens, **sizes))


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    rest = {"intermediate_size": 12, "max_position_embeddings": 16, "num_labels": 3}
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes, **rest))
    with torch.no_grad():
        for p in model.parameters():  # so that attention is not even
            p.add_(0.4 * torch.randn_like(p))
    return model


def with_lora(model, fresh=False, **options):
    """Return the model with an adapter on its attention, B = 0 if it is fresh."""
    kind = isinstance(model, GPT2LMHeadModel)
    defaults = {
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["c_attn", "c_proj"] if kind else ["query", "value"],
        "fan_in_fan_out": kind,
    }
    model = get_peft_model(model, LoraConfig(**{**defaults, **options}))
    if not fresh:
        shake(model, 0.3)
    return model


def shake(model, size, seed=7):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(size * torch.randn(p.shape, generator=g).to(p))


def sequences(n=6, seed=1, labels=False):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (n,), generator=g).tolist()
    items = [{"input_ids": torch.randint(VOCABULARY, (k,), generator=g)} for k in lengths]
    extra = [
        {"label": i % 3} if labels else {"labels": x["input_ids"]} for i, x in enumerate(items)
    ]
    return [item | more for item, more in zip(items, extra, strict=True)]


@pytest.fixture(params=["Conv1D", "Linear"])
def adapted(request):
    """A model whose LoRA layers are stored as (in, out), or as (out, in), and data for it."""
    if request.param == "Conv1D":
        return with_lora(gpt2()), sequences()
    return with_lora(bert()), sequences(labels=True)


def consolidated(model, data, cls=LoraEWC, lam=5.0, **options):
    ewc = cls(model, lam=lam, **options)
    consolidate(ewc, data, "empirical")
    return ewc


# What is trained, and its Fisher information


def test_a_fresh_adapter_has_no_fisher_information_of_A():  # noqa: N802
    model = with_lora(gpt2(), fresh=True)
    for estimator in ("empirical", "sampled", "exact"):
        fisher = sequence_fisher(model, sequences(), estimator)
        assert fisher
        assert all("lora_" in name for name in fisher)  # nothing frozen is measured
        for name, value in fisher.items():
            assert (value == 0).all() if "lora_A" in name else (value > 0).any(), name


def test_parameter_space_penalty_does_not_hold_A():  # noqa: N802
    model = with_lora(gpt2(), fresh=True)
    ewc = consolidated(model, sequences(), EWC)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.add_(100.0)
    assert ewc.penalty().item() == 0.0


def test_fisher_of_the_frozen_weight_is_that_of_the_merged_model(adapted):
    model, data = adapted
    ewc = consolidated(model, data)
    merged = copy.deepcopy(model).merge_and_unload()
    fisher = sequence_fisher(merged.requires_grad_(True), data, "empirical")
    expected = {
        name: fisher[name.removeprefix("base_model.model.").replace(".base_layer", "")].double()
        for name in ewc.names
    }
    assert_fisher_close(ewc.importance, expected)
    assert all(p.requires_grad == ("lora_" in n) for n, p in model.named_parameters())


def test_delta_is_what_merging_adds(adapted):
    model, data = adapted
    ewc = consolidated(model, data)
    merged = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    for name, delta in ewc.values().items():
        frozen = model.get_parameter(name)
        after = merged[name.removeprefix("base_model.model.").replace(".base_layer", "")]
        assert torch.allclose(frozen + delta, after, atol=1e-6)
        assert torch.allclose(ewc.anchor[name], delta)


# The penalty


def by_hand(ewc, lam):
    """Return λ/2 Σ F (Δ − Δ*)², multiplied out."""
    total = 0.0
    for name, layer in ewc._layers.items():
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        delta = 3.0 * (B @ A)  # s = alpha / r = 6 / 2
        delta = delta.T if ewc.anchor[name].shape != delta.shape or layer.fan_in_fan_out else delta
        total = total + (ewc.importance[name] * (delta - ewc.anchor[name]) ** 2).sum()
    return lam / 2 * total


def test_penalty_and_its_gradient_by_finite_differences(adapted):
    model, data = adapted
    model = model.double()
    ewc = consolidated(model, data)
    assert ewc.penalty().item() == pytest.approx(0.0, abs=1e-20)
    shake(model, 0.5)
    assert ewc.penalty().item() == pytest.approx(by_hand(ewc, 5.0).item(), rel=1e-10)
    ewc.add_gradient_()
    for name, p in model.named_parameters():
        if "lora_" not in name:
            assert p.grad is None
            continue
        for place in ((0, 0), (-1, -1), (0, 1)):
            h, values = 1e-5, []
            for step in (h, -2 * h):
                p.data[place] += step
                values.append(ewc.penalty().item())
            p.data[place] += h
            difference = (values[0] - values[1]) / (2 * h)
            assert p.grad[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-9)
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    ewc.add_gradient_()
    assert all(torch.allclose(model.get_parameter(n).grad, 2 * g) for n, g in before.items())


def test_the_penalty_sees_the_function_and_not_the_factors(adapted):
    model, data = adapted
    ours, theirs = consolidated(model, data), consolidated(model, data, EWC)
    with torch.no_grad():
        for layer in ours._layers.values():
            layer.lora_A["default"].weight.mul_(4.0)
            layer.lora_B["default"].weight.div_(4.0)
    assert ours.penalty().item() == pytest.approx(0.0, abs=1e-8)
    assert theirs.penalty().item() > 1e-3


def test_two_tasks_add_up(adapted):
    model, data = adapted
    ewc = LoraEWC(model, lam=2.0)
    parts = []
    for seed in (1, 2):
        shake(model, 0.2, seed)
        consolidate(ewc, data[seed:], "empirical")
        alone = LoraEWC(model, lam=2.0)
        consolidate(alone, data[seed:], "empirical")
        parts.append(alone)
    shake(model, 0.2, 3)
    expected = sum(part.penalty().item() for part in parts)
    assert ewc.penalty().item() == pytest.approx(expected, rel=1e-4)


# The proximal step


def objective(ewc, weights, model, lr):
    change = sum((model.get_parameter(n) - w).square().sum() for n, w in weights.items())
    return ewc.penalty() + change / (2 * lr)


def test_each_half_of_the_proximal_step_is_exact(adapted):
    model, data = adapted
    model = model.double()
    ewc = consolidated(model, data)
    for free in ("lora_B", "lora_A"):
        shake(model, 0.5)
        trainable = {n: p for n, p in model.named_parameters() if "lora_" in n}
        for name, p in trainable.items():
            p.requires_grad_(free in name)
        before = {n: p.detach().clone() for n, p in trainable.items()}
        ewc.proximal_step_(0.3)
        moved = [p for n, p in trainable.items() if free in n]
        gradients = torch.autograd.grad(objective(ewc, before, model, 0.3), moved)
        for gradient, p in zip(gradients, moved, strict=True):
            assert gradient.abs().max() < 1e-10
            assert p.requires_grad
        for name, p in trainable.items():
            assert torch.equal(p, before[name]) == (free not in name)
            p.requires_grad_(True)


def test_a_small_proximal_step_is_a_gradient_step(adapted):
    model, data = adapted
    model = model.double()
    ewc = consolidated(model, data)
    shake(model, 0.5)
    ewc.add_gradient_()
    lr = 1e-9
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
    ewc.proximal_step_(lr)
    for name, value in before.items():
        p = model.get_parameter(name)
        assert torch.allclose((value - p) / lr, p.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lam", [1.0, 1e4, 1e9])
def test_the_proximal_step_never_raises_the_penalty(adapted, lam):
    model, data = adapted
    ewc = consolidated(model, data, lam=lam)
    shake(model, 0.5)
    values = [ewc.penalty().item()]
    for _ in range(20):
        ewc.proximal_step_(0.1)
        values.append(ewc.penalty().item())
    assert all(b <= a * (1 + 1e-5) + 1e-9 * values[0] for a, b in pairwise(values))
    assert values[-1] < (0.1 if lam == 1e9 else 1.0) * values[0]


# As EWC


def test_what_is_trainable_besides_the_adapter_is_protected_as_it_is():
    model = with_lora(bert(), modules_to_save=["classifier"])
    ewc = consolidated(model, sequences(labels=True))
    heads = [name for name in ewc.names if "classifier" in name]
    assert len(heads) == 2
    head = model.get_parameter(heads[0])
    with torch.no_grad():
        head.add_(1.0)
    assert ewc.penalty().item() == pytest.approx(2.5 * ewc.importance[heads[0]].sum().item())
    ewc.lam = 1e12
    ewc.proximal_step_(0.1)
    assert torch.allclose(
        head[ewc.importance[heads[0]] > 1e-6].mean(), ewc.anchor[heads[0]].mean(), atol=0.2
    )


def test_state_moves_to_another_adapter(adapted):
    model, data = adapted
    ewc = consolidated(model, data)
    other = copy.deepcopy(model)
    loaded = LoraEWC(other)
    loaded.load_state_dict(ewc.state_dict())
    shake(model, 0.2)
    shake(other, 0.2)
    assert loaded.penalty().item() == pytest.approx(ewc.penalty().item(), rel=1e-6)
    assert LoraEWC(other, include="*attn*" if "c_attn" in str(ewc.names) else "*query*").names


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_in_the_trainer(tmp_path, update):
    model = with_lora(gpt2(), fresh=True)
    ewc = consolidated(model, sequences(), lam=1e5)
    frozen = {n: p.clone() for n, p in model.named_parameters() if "lora_" not in n}
    options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    rest = {"save_strategy": "epoch", "learning_rate": 1e-2, "num_train_epochs": 2}
    trainer = EWCTrainer(
        model,
        TrainingArguments(str(tmp_path), per_device_train_batch_size=3, **options, **rest),
        data_collator=collator(model),
        train_dataset=sequences(seed=5),
        ewc=ewc,
        ewc_update=update,
    )
    trainer.train()
    assert all(torch.equal(model.get_parameter(n), p) for n, p in frozen.items())
    saved = torch.load(tmp_path / "checkpoint-4" / "ewc.pt", weights_only=True)
    assert saved.keys() == ewc.state_dict().keys()
    resumed = trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.global_step == 4


def test_errors_say_what_would_be_right():
    with pytest.raises(ValueError, match="no LoRA adapter 'default'.*get_peft_model"):
        LoraEWC(gpt2())
    with pytest.raises(ValueError, match="no LoRA adapter 'mine'"):
        LoraEWC(with_lora(gpt2()), adapter="mine")
    with pytest.raises(ValueError, match="another kind"):
        LoraEWC(with_lora(bert(), use_dora=True))
    with pytest.raises(ValueError, match="another kind .Embedding"):
        LoraEWC(with_lora(bert(), target_modules=["word_embeddings"]))
    with pytest.raises(ValueError, match="matches no trainable"):
        LoraEWC(with_lora(gpt2()), include="nothing")
    with pytest.raises(ValueError, match="must be 'diagonal' or 'kronecker', not 'identity'"):
        LoraEWC(with_lora(gpt2()), curvature="identity")


# Kronecker factors of the frozen weights


def dense_blocks(model, sequence, names):
    """Return the Fisher block of each weight for one sequence, from its gradient, (D, D)."""
    batch = collator(model)([sequence])
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = copy.deepcopy(model).double().eval()
    weights = [logits.get_parameter(name).requires_grad_(True) for name in names]
    log_p = logits(**inputs).logits.log_softmax(-1)
    if log_p.ndim == 3:  # the next tokens
        score = log_p[0, :-1].gather(1, sequence["labels"][1:, None]).sum()
    else:
        score = log_p[0, sequence["label"]]
    gradients = torch.autograd.grad(score, weights)
    return [torch.outer(g.flatten(), g.flatten()) for g in gradients]


def kronecker_by_hand(ewc, lam):
    """Return λ/2 Σ vec(Δ − Δ*)ᵀ (G ⊗ A) vec(Δ − Δ*), with the matrices written out."""
    total, state = 0.0, ewc.state_dict()
    for name, layer in ewc._layers.items():
        A, G = (state[f"{kind}:{name.replace('.', '/')}"] for kind in "AG")
        delta = 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        anchor = ewc.anchor[name].T if layer.fan_in_fan_out else ewc.anchor[name]
        away = (delta - anchor).flatten()
        total = total + away @ torch.kron(G, A) @ away
    return lam / 2 * total * ewc.n_tasks


def test_factors_of_one_position_are_the_dense_block():
    """Of one token alone there is nothing that a product of factors leaves out."""
    model = with_lora(bert()).double()
    sequence = {"input_ids": torch.tensor([3]), "label": 1}
    ewc = consolidated(model, [sequence], curvature="kronecker")
    blocks = dense_blocks(model, sequence, ewc.names)
    assert max(block.abs().max() for block in blocks) > 1e-6
    state = ewc.state_dict()
    for name, block in zip(ewc.names, blocks, strict=True):
        A, G = (state[f"{kind}:{name.replace('.', '/')}"] for kind in "AG")
        torch.testing.assert_close(torch.kron(G, A), block, rtol=1e-6, atol=1e-12)


def test_factors_of_the_frozen_weight_are_those_of_the_merged_model(adapted):
    model, data = adapted
    ewc = consolidated(model, data, curvature="kronecker")
    merged = copy.deepcopy(model).merge_and_unload().requires_grad_(True)
    plain = {n: n.removeprefix("base_model.model.").replace(".base_layer", "") for n in ewc.names}
    other = EWC(merged, curvature="kronecker", include=list(plain.values()))
    consolidate(other, data, "empirical")
    assert all(text.startswith("Kronecker") for text in ewc.explain().values())
    for name, shape in ewc.shapes().items():
        weight, kind = name.rsplit(":", 1)
        mine = ewc.state_dict()[f"{kind}:{weight.replace('.', '/')}"]
        theirs = other.state_dict()[f"{kind}:{plain[weight].replace('.', '/')}"]
        assert mine.shape == shape
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_kronecker_penalty_and_gradient_of_an_adapter(adapted):
    model, data = adapted
    model = model.double()
    ewc = LoraEWC(model, lam=5.0, curvature="kronecker")
    assert ewc.rule == "latest"
    for part in (data[:3], data[3:]):  # two tasks
        shake(model, 0.2)
        consolidate(ewc, part, "empirical")
        assert ewc.penalty().item() == pytest.approx(0.0, abs=1e-20)
    shake(model, 0.5)
    assert ewc.penalty().item() == pytest.approx(kronecker_by_hand(ewc, 5.0).item(), rel=1e-10)
    ewc.add_gradient_()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == ("lora_" in name)
        if p.grad is not None:
            h, values = 1e-5, []
            for step in (h, -2 * h):
                p.data[-1, 0] += step
                values.append(ewc.penalty().item())
            p.data[-1, 0] += h
            difference = (values[0] - values[1]) / (2 * h)
            assert p.grad[-1, 0].item() == pytest.approx(difference, rel=1e-5, abs=1e-9)
    loaded = LoraEWC(copy.deepcopy(model), curvature="kronecker")
    loaded.load_state_dict(ewc.state_dict())
    assert loaded.penalty().item() == pytest.approx(ewc.penalty().item(), rel=1e-12)


def test_an_adapter_with_factors_has_no_proximal_step():
    model = with_lora(gpt2())
    ewc = consolidated(model, sequences(), curvature="kronecker")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotImplementedError, match="no proximal step.*add_gradient_"):
        ewc.proximal_step_(0.1)
    with pytest.raises(NotImplementedError, match="no proximal step"):
        ewc.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# What works with an EWC works with what it protects


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_forgetting_the_last_task_leaves_no_penalty(adapted, curvature):
    """The anchor is Δ at the earlier weights, not the frozen weight."""
    model, data = adapted
    ewc = LoraEWC(model, lam=5.0, curvature=curvature)
    memory = TaskMemory(ewc)
    for task in "AB":
        memory.begin(task)
        shake(model, 0.2, seed=ord(task))
        memory.consolidate(data, "empirical", fisher=sequence_fisher)
        if task == "A":
            after_a = {n: v.detach().clone() for n, v in ewc.values().items()}
    assert not any("base_layer" in name for name in memory["A"].after)
    memory.forget("B")
    for name, value in ewc.values().items():
        assert torch.equal(value, after_a[name])
        torch.testing.assert_close(ewc.anchor[name], after_a[name])
    assert ewc.penalty().item() == pytest.approx(0.0, abs=1e-9)


def test_forgetting_an_earlier_task_puts_the_anchor_where_its_update_is_missing(adapted):
    model, data = adapted
    ewc = LoraEWC(model, lam=5.0, rule="latest")
    memory = TaskMemory(ewc)
    for task in "AB":
        memory.begin(task)
        shake(model, 0.2, seed=ord(task))
        memory.consolidate(data, "empirical", fisher=sequence_fisher)
    memory.forget("A")
    # Under this rule the anchor is where the last task ended, which is now where the model is.
    for name, value in ewc.values().items():
        torch.testing.assert_close(ewc.anchor[name], value.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_a_right_set_up_is_not_called_wrong(adapted, curvature):
    model, data = adapted
    ewc = consolidated(model, data, curvature=curvature)
    assert [f.name for f in diagnose(model, ewc)] == []
    shake(model, 0.2)
    report = diagnose(model, ewc)
    assert [f.name for f in report] == []
    assert "size of the penalty" in report.checked
    for name, S in ewc.named_buffers():
        if not name.startswith("anchor"):
            S.zero_()
    assert [f.name for f in diagnose(model, ewc)] == ["F is zero"]


def test_a_bad_step_is_refused(adapted):
    model, data = adapted
    ewc = consolidated(model, data)
    before = copy.deepcopy(model.state_dict())
    for lr in (float("nan"), -1.0):
        with pytest.raises(ValueError, match="lr must be a finite number"):
            ewc.proximal_step_(lr)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_attach_moves_the_adapter_and_holds_at_any_strength(adapted):
    model, data = adapted
    ewc = consolidated(model, data, lam=1e6)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    penalties = []
    with ewc.attach(optimizer):
        for step in range(3):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            for p in ewc.weights().values():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            penalties.append(ewc.penalty().item())
    optimizer.zero_grad()
    shake(model, 1e-2)
    assert max(penalties) < 0.05 * ewc.penalty().item()


# One adapter for many tasks


def whole_weights(model):
    """W + s·BA of each layer with an adapter, multiplied out."""
    found = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            delta = layer.scaling["default"] * B @ A
            delta = delta.T if layer.fan_in_fan_out else delta
            found[f"{name}.base_layer.weight"] = (layer.base_layer.weight + delta).detach()
    return found


@pytest.mark.parametrize("rule", ["separate", "latest", "online", "average"])
def test_an_adapter_that_restarts_changes_neither_the_model_nor_the_penalty(adapted, rule):
    model, data = adapted[0].double().eval(), adapted[1]
    ewc = LoraEWC(model, lam=5.0, rule=rule, gamma=0.7 if rule == "online" else 1.0)
    batch, seen = collator(model)(data), []
    for task in range(3):
        shake(model, 0.2, seed=task)
        consolidate(ewc, data[task:], "empirical")
        seen.append((sequence_fisher_of(ewc, data[task:]), whole_weights(model)))
        before, old = ewc.penalty().item(), whole_weights(model)
        with torch.no_grad():
            logits = model(**batch).logits
            ewc.restart_(task)
            torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-10, atol=1e-10)
        assert ewc.penalty().item() == pytest.approx(before, rel=1e-10, abs=1e-20)
        assert all(not Delta.any() for Delta in ewc.values().values())
        if rule != "separate":
            assert not any(mu.any() for mu in ewc.anchor.values())
        for name, W in whole_weights(model).items():
            torch.testing.assert_close(W, old[name], rtol=1e-12, atol=1e-12)
    shake(model, 0.2, seed=9)
    n = len(seen)
    weights = {"average": [1 / n] * n, "online": [0.7 ** (n - 1 - t) for t in range(n)]}
    expected, last = 0.0, whole_weights(model)
    for t, (F, W) in enumerate(seen):
        W = W if rule == "separate" else seen[-1][1]
        share = weights.get(rule, [1.0] * n)[t]
        expected += 2.5 * share * sum((F[i] * (last[i] - W[i]) ** 2).sum().item() for i in F)
    assert ewc.penalty().item() == pytest.approx(expected, rel=1e-8)


def sequence_fisher_of(ewc, data):
    return ewc.measure(data, "empirical", fisher=sequence_fisher)


def test_a_restarted_adapter_is_a_fresh_one_and_learns():
    model = with_lora(gpt2())
    ewc = consolidated(model, sequences())
    parameters = {n: p for n, p in model.named_parameters() if "lora_" in n}
    ewc.restart_(3)
    for name, p in model.named_parameters():
        if "lora_" in name:
            assert p is parameters[name]
            assert p.any() == ("lora_A" in name)
    A = {n: p.detach().clone() for n, p in parameters.items() if "lora_A" in n}
    fresh = with_lora(gpt2(), fresh=True)
    for name, p in fresh.named_parameters():
        if name in A:  # PEFT draws from the same distribution: a bound, and the standard deviation
            bound = p.shape[1] ** -0.5
            assert max(p.abs().max(), A[name].abs().max()) <= bound
            assert A[name].abs().max() > 0.7 * bound
    ewc.restart_(3)
    assert all(torch.equal(parameters[n], value) for n, value in A.items())


def test_an_adapter_that_cannot_restart_is_left_as_it_is():
    model = with_lora(gpt2())
    ewc = consolidated(model, sequences())
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    with torch.no_grad():
        layers[-1].lora_B["default"].weight[0, 0] = float("inf")
    before = copy.deepcopy((model.state_dict(), ewc.anchor))
    with pytest.raises(ValueError, match="correction of .* is not finite"):
        ewc.restart_()
    for a, b in zip((model.state_dict(), ewc.anchor), before, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in b)
    model = with_lora(gpt2())
    ewc = LoraEWC(model)
    model.merge_adapter()
    with pytest.raises(RuntimeError, match=r"merged already: call unmerge_adapter\(\)"):
        ewc.restart_()
