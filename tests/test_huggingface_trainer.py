"""The penalty in the Trainer: once per optimizer step, whatever else the Trainer does."""

from __future__ import annotations

import copy
from functools import partial

import forked
import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("transformers")
from torch.utils.data import SequentialSampler
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from ewc_tutorial import EWC
from ewc_tutorial.curvature import Kronecker
from ewc_tutorial.huggingface import (
    EWCCallback,
    EWCTrainer,
    EWCTrainerMixin,
    collator,
    consolidate,
)

#: These load Transformers, which takes as long as many a test.
pytestmark = pytest.mark.slow

VOCABULARY = 11
LR = 0.05
# Adam divides by the size of the gradient, so that the rounding errors of gradients that are zero
# by symmetry would be seen in full.
adamw = partial(torch.optim.AdamW, eps=1e-2)


class InOrder(EWCTrainer):
    """Without shuffling, so that a loop written by hand sees the same batches."""

    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def gpt2(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**tokens, **sizes, **drop))
    # Else the Trainer does not know that the labels are shifted: it divides the loss by the number
    # of all tokens, the first of each sequence included, which no loss is about (5.23).
    model.loss_type = "ForCausalLM"
    return model


def sequences(n, seed):
    """Return items of different lengths: micro-batches then have different numbers of tokens."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (n,), generator=g).tolist()
    items = [{"input_ids": torch.randint(VOCABULARY, (k,), generator=g)} for k in lengths]
    return [item | {"labels": item["input_ids"]} for item in items]


OLD, NEW, OLD_TEST, NEW_TEST = (sequences(n, s) for s, n in enumerate((12, 24, 5, 6)))


def protected(model, lam=3.0, shift=0.1, curvature="diagonal"):
    """Return an EWC of which the model has been moved away, so that the penalty counts at once."""
    ewc = EWC(model, lam=lam, curvature=curvature)
    consolidate(ewc, OLD, "empirical")
    torch.manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(shift * torch.randn_like(p))
    return ewc


def arguments(folder, cls=TrainingArguments, **options):
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    plan = {"per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": LR}
    rest = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "use_cpu": True}
    return cls(output_dir=str(folder), **{**quiet, **plan, **rest, **options})


def trainer_of(model, ewc, folder, cls=InOrder, optimizer=torch.optim.SGD, data=NEW, **options):
    own = ("ewc_update", "ewc_every", "old_eval_dataset")
    more = {k: options.pop(k) for k in own if k in options}
    return cls(
        model,
        arguments(folder, **options),
        data_collator=collator(model),
        train_dataset=data,
        eval_dataset=NEW_TEST,
        optimizers=(optimizer(model.parameters(), lr=LR), None),
        ewc=ewc,
        **more,
    )


def by_hand(model, ewc, update, optimizer=torch.optim.SGD, batch=8, clip=None):
    """Train with a plain loop: mean loss over the batch's tokens, then the penalty once."""
    optimizer = optimizer(model.parameters(), lr=LR)
    for start in range(0, len(NEW), batch):
        optimizer.zero_grad()
        items, count, loss = NEW[start : start + batch], 0, 0.0
        for item in items:
            log_p = model(item["input_ids"][None]).logits[0].log_softmax(-1)
            loss = loss - log_p[:-1].gather(1, item["labels"][1:, None]).sum()
            count += len(item["labels"]) - 1
        (loss / count).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if update == "gradient":
            for name, pull in gradients_of(ewc, model).items():
                model.get_parameter(name).grad += pull
        optimizer.step()
        with torch.no_grad():
            for names, S in blocks_of(ewc) if update == "proximal" else ():
                parts = [model.get_parameter(name) for name in names]
                mu = flat(ewc.anchor[name] for name in names)
                d = flat(denominator(optimizer, p) + torch.zeros_like(p) for p in parts)
                now = flat(parts)
                if S.ndim == 1:
                    there = (d * now + LR * ewc.lam * S * mu) / (d + LR * ewc.lam * S)
                else:
                    system = d.diag() + LR * ewc.lam * S
                    there = torch.linalg.solve(system, d * now + LR * ewc.lam * S @ mu)
                for p, value in zip(parts, there.split([p.numel() for p in parts]), strict=True):
                    p.copy_(value.view_as(p))


def blocks_of(ewc):
    """Yield names, and S of these weights one after the other: its diagonal or a whole matrix."""
    state = ewc.state_dict()
    for name in ewc.names:
        key = name.replace(".", "/")
        if f"importance:{key}" in state:
            yield [name], state[f"importance:{key}"].double().flatten()
        elif f"A:{key}" in state:
            A, G = state[f"A:{key}"].double(), state[f"G:{key}"].double()
            bias = name.replace("weight", "bias")
            if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
                # Stored as (inputs, outputs), so inputs come first, and the bias last.
                yield [name, bias], torch.kron(A, G)
            else:
                yield [name], torch.kron(G, A)


def gradients_of(ewc, model):
    found = {}
    for names, S in blocks_of(ewc):
        away = flat(model.get_parameter(n).detach() - ewc.anchor[n] for n in names)
        pull = ewc.lam * (S * away if S.ndim == 1 else S @ away)
        sizes = [model.get_parameter(n).numel() for n in names]
        for name, part in zip(names, pull.split(sizes), strict=True):
            found[name] = part.view_as(model.get_parameter(name)).float()
    return found


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def denominator(optimizer, p):
    """What the optimizer divides its step by: √v̂ + ε for Adam, 1 for gradient descent."""
    if isinstance(optimizer, torch.optim.SGD):
        return 1
    state = optimizer.state[p]
    return (state["exp_avg_sq"] / (1 - 0.999 ** state["step"].item())).sqrt() + 1e-2


def assert_same_weights(one, two, atol=1e-6):
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=atol), name


@pytest.mark.parametrize("update", ["gradient", "proximal"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, adamw])
@pytest.mark.parametrize(
    ("accumulation", "curvature"), [(1, "diagonal"), (4, "diagonal"), (4, "kronecker")]
)
def test_trainer_is_the_loop_written_by_hand(tmp_path, update, optimizer, accumulation, curvature):
    model = gpt2()
    iterated = curvature == "kronecker" and update == "proximal" and optimizer is adamw
    if iterated:  # until a residual of a thousandth of the first
        curvature = Kronecker(iterations=1000)
    ewc = protected(model, curvature=curvature)
    oracle = copy.deepcopy(model)
    split = {
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    options = {"optimizer": optimizer, "ewc_update": update, "ewc_every": 1}
    trainer_of(model, ewc, tmp_path, **options, **split).train()
    by_hand(oracle, ewc, update, optimizer)
    assert_same_weights(model, oracle, 2e-4 if iterated else 1e-6)


def test_training_that_begins_anew_with_smaller_batches_is_pulled_once(tmp_path):
    model = gpt2()
    ewc = protected(model)
    oracle = copy.deepcopy(model)
    options = {"ewc_update": "proximal", "auto_find_batch_size": True}
    trainer = trainer_of(model, ewc, tmp_path, **options)
    pads, calls = trainer.data_collator, []

    def pads_the_second_time(items):
        calls.append(len(items))
        if len(calls) == 1:
            raise RuntimeError("CUDA out of memory.")
        return pads(items)

    trainer.data_collator = pads_the_second_time
    trainer.train()
    assert calls[1] < calls[0] == 8
    by_hand(oracle, ewc, "proximal", batch=calls[1])
    assert_same_weights(model, oracle)


def test_clipping_bounds_the_new_loss_alone(tmp_path):
    model = gpt2()
    ewc = protected(model)
    oracle = copy.deepcopy(model)
    trainer_of(model, ewc, tmp_path, max_grad_norm=0.1).train()
    by_hand(oracle, ewc, "gradient", clip=0.1)
    assert_same_weights(model, oracle)


class Recorder(torch.optim.SGD):
    """An optimizer that remembers the gradients of each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def step(self, closure=None):
        (group,) = self.param_groups
        self.seen.append([p.grad.clone() for p in group["params"]])
        return super().step(closure)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        {"label_smoothing_factor": 0.1},
        {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
        {"bf16": True},
        {"max_grad_norm": 1e-3},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_the_first_step_has_the_penalty_once(tmp_path, options):
    gradients = []
    for lam in (0.0, 3.0):
        model = gpt2()
        ewc = protected(model, lam)
        before = copy.deepcopy(model)
        trainer = trainer_of(model, ewc, tmp_path, optimizer=Recorder, max_steps=1, **options)
        recorder = trainer.optimizer
        trainer.train()
        assert len(recorder.seen) == 1
        gradients.append(recorder.seen[0])
    for without, with_, (name, p) in zip(*gradients, before.named_parameters(), strict=True):
        expected = 3.0 * ewc.importance[name] * (p - ewc.anchor[name])
        assert torch.allclose(with_ - without, expected, rtol=1e-3, atol=1e-6), name


def test_without_ewc_it_is_the_trainer(tmp_path):
    one, two = gpt2(), gpt2()
    trainer_of(one, None, tmp_path).train()

    class Plain(Trainer):
        _get_train_sampler = InOrder._get_train_sampler

    Plain(
        two,
        arguments(tmp_path),
        data_collator=collator(two),
        train_dataset=NEW,
        optimizers=(torch.optim.SGD(two.parameters(), lr=LR), None),
    ).train()
    assert_same_weights(one, two, 0.0)


def test_the_logged_loss_is_without_the_penalty(tmp_path):
    model = gpt2()
    ewc = protected(model)
    first = copy.deepcopy(model)
    trainer = trainer_of(model, ewc, tmp_path, max_steps=1)
    trainer.train()
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    with torch.no_grad():
        batch = collator(model)(NEW[:8])
        expected = first(**batch).loss.item()
    assert entry["loss"] == pytest.approx(expected, rel=1e-4)
    assert entry["ewc_penalty"] == pytest.approx(ewc.penalty().item(), rel=1e-5)
    assert entry["ewc_penalty"] > 0


def mean_loss(model, items):
    """Return what the Trainer reports: the mean over batches of eight, weighted by sequences."""
    model.eval()
    with torch.no_grad():
        return model(**collator(model)(items)).loss.item()


def test_every_evaluation_has_the_old_loss(tmp_path):
    model = gpt2()
    trainer = trainer_of(
        model,
        protected(model),
        tmp_path,
        old_eval_dataset=OLD_TEST,
        eval_strategy="epoch",
        num_train_epochs=2,
        dataloader_persistent_workers=False,
    )
    trainer.train()
    entries = [e for e in trainer.state.log_history if "eval_loss" in e]
    assert len(entries) == 2
    assert all("eval_old_loss" in entry for entry in entries)
    assert entries[-1]["eval_loss"] == pytest.approx(mean_loss(model, NEW_TEST), rel=1e-4)
    assert entries[-1]["eval_old_loss"] == pytest.approx(mean_loss(model, OLD_TEST), rel=1e-4)
    metrics = trainer.evaluate()
    assert metrics["eval_old_loss"] == pytest.approx(mean_loss(model, OLD_TEST), rel=1e-4)
    assert "eval_old_loss" not in trainer.predict(NEW_TEST).metrics


def test_several_old_and_several_new_sets(tmp_path):
    model = gpt2()
    old = {"first": OLD_TEST, "second": OLD[:4]}
    trainer = trainer_of(model, protected(model), tmp_path, old_eval_dataset=old)
    trainer.eval_dataset = {"a": NEW_TEST, "b": NEW[:3]}
    metrics = trainer.evaluate()
    expected = {
        "eval_a_loss": NEW_TEST,
        "eval_b_loss": NEW[:3],
        "eval_old_first_loss": OLD_TEST,
        "eval_old_second_loss": OLD[:4],
    }
    for name, items in expected.items():
        assert metrics[name] == pytest.approx(mean_loss(model, items), rel=1e-4)
    assert {n for n in metrics if n.endswith("loss")} == expected.keys()


def test_evaluating_the_old_data_changes_nothing(tmp_path):
    models = []
    for old in (None, OLD_TEST):
        model = gpt2(dropout=0.2)
        ewc = protected(model)
        options = {"eval_strategy": "steps", "eval_steps": 1, "old_eval_dataset": old}
        trainer_of(model, ewc, tmp_path, **options).train()
        models.append(model)
    assert_same_weights(*models, 0.0)


def test_layers_of_gpt2_have_factors():
    """Its linear layers are stored as (inputs, outputs); its table is its output layer as well."""
    model = gpt2()
    ewc = protected(model, curvature="kronecker")
    why = ewc.explain()
    path = "transformer.h.0"
    for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert why[f"{path}.{layer}.weight"].startswith("Kronecker: A "), layer
        assert why[f"{path}.{layer}.bias"].startswith("Kronecker: in the block"), layer
        shape = model.get_parameter(f"{path}.{layer}.weight").shape
        sides = ewc.shapes()
        assert sides[f"{path}.{layer}.weight:A"] == (shape[0] + 1,) * 2
        assert sides[f"{path}.{layer}.weight:G"] == (shape[1],) * 2
    assert (
        why["transformer.wte.weight"] == "diagonal: an embedding, whose inputs are numbers of rows"
    )
    with torch.no_grad():
        loss = ewc.penalty().item()
        expected = sum(
            away @ S @ away if S.ndim == 2 else (S * away**2).sum()
            for names, S in blocks_of(ewc)
            for away in [flat(model.get_parameter(n) - ewc.anchor[n] for n in names)]
        )
    assert loss == pytest.approx(1.5 * expected.item(), rel=1e-5)
    wider = torch.nn.Parameter(torch.zeros(9, 24))
    model.transformer.h[0].attn.c_attn.weight = wider
    with pytest.raises(RuntimeError, match="stored as .inputs, outputs., has got further inputs"):
        ewc.grow_()


@pytest.mark.parametrize(
    ("update", "curvature", "every"),
    [
        ("gradient", "diagonal", None),
        ("gradient", "kronecker", None),
        ("proximal", "diagonal", 1),
        ("proximal", "diagonal", 4),
        ("proximal", "kronecker", None),
    ],
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, update, curvature, every):
    options = {
        "cls": EWCTrainer,  # shuffled
        "ewc_update": update,
        "ewc_every": every,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "optimizer": torch.optim.AdamW,
    }
    model = gpt2(dropout=0.1)
    ewc = protected(model, lam=2.0, curvature=curvature)
    trainer_of(model, ewc, tmp_path, **options).train()

    fresh = gpt2(seed=5, dropout=0.1)
    # As a new process has it: nothing consolidated.
    empty = EWC(fresh, lam=77.0, curvature=curvature)
    resumed = trainer_of(fresh, empty, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (empty.n_tasks, empty.lam) == (1, 2.0)
    assert_same_weights(fresh, model, 1e-7)


def test_what_is_saved_has_had_its_proximal_step(tmp_path):
    """At a λ that forbids all movement the saved weights are the anchor, whatever the period."""
    model = gpt2()
    ewc = protected(model, lam=1e12)
    saving = {"save_strategy": "steps", "save_steps": 2, "ewc_update": "proximal", "ewc_every": 9}
    trainer_of(model, ewc, tmp_path, **saving).train()
    saved = type(model).from_pretrained(tmp_path / "checkpoint-2")
    for other in (saved, model):
        for name, p in other.named_parameters():
            held = ewc.importance[name] > 1e-6
            torch.testing.assert_close(p[held], ewc.anchor[name][held], rtol=0, atol=1e-4)
    assert (tmp_path / "checkpoint-2" / "ewc_attached.pt").exists()


def test_resuming_the_last_checkpoint_and_a_saved_model(tmp_path):
    model = gpt2()
    ewc = protected(model)
    trainer = trainer_of(model, ewc, tmp_path, save_strategy="epoch")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    state = torch.load(tmp_path / "final" / "ewc.pt", weights_only=True)
    other = gpt2(seed=3)
    loaded = EWC(other)
    loaded.load_state_dict(state)
    assert loaded.n_tasks == 1
    empty = EWC(other)
    trainer_of(other, empty, tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert empty.n_tasks == 1


@pytest.mark.parametrize(("curvature", "every"), [("diagonal", None), ("kronecker", 5)])
def test_the_callback_does_what_the_trainer_of_this_package_does(tmp_path, curvature, every):
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "optim": "sgd"}
    models = []
    for name in ("trainer", "callback"):
        model = gpt2(dropout=0.1)
        ewc = protected(model, lam=2.0, curvature=curvature)
        plan = arguments(tmp_path / name, **options)
        data = {"train_dataset": NEW, "data_collator": collator(model)}
        if name == "trainer":
            trainer = EWCTrainer(
                model, plan, **data, ewc=ewc, ewc_update="proximal", ewc_every=every
            )
        else:
            trainer = Trainer(model, plan, **data, callbacks=[EWCCallback(ewc, every)])
        trainer.train()
        models.append(model)
    assert_same_weights(*models, 0.0)

    resumed = gpt2(seed=5, dropout=0.1)
    empty = EWC(resumed, lam=77.0, curvature=curvature)
    Trainer(resumed, plan, **data, callbacks=[EWCCallback(empty, every)]).train(
        resume_from_checkpoint=str(tmp_path / "callback" / "checkpoint-2")
    )
    assert (empty.n_tasks, empty.lam) == (1, 2.0)
    assert_same_weights(resumed, models[0], 1e-7)


def test_a_checkpoint_without_ewc(tmp_path):
    model = gpt2()
    trainer_of(model, None, tmp_path, save_strategy="epoch").train()
    with pytest.raises(FileNotFoundError, match="consolidate before resuming"):
        trainer_of(model, EWC(model), tmp_path).train(resume_from_checkpoint=True)
    ewc = protected(model)
    trainer_of(model, ewc, tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)


def test_errors_say_what_would_be_right(tmp_path):
    model = gpt2()
    with pytest.raises(ValueError, match="made with the model that the Trainer gets"):
        trainer_of(model, EWC(gpt2()), tmp_path)
    with pytest.raises(ValueError, match="ewc_update must be one of gradient, proximal"):
        trainer_of(model, EWC(model), tmp_path, ewc_update="loss")
    optimizer = torch.optim.NAdam(model.parameters())
    trainer = trainer_of(model, protected(model), tmp_path, ewc_update="proximal")
    trainer.optimizer = optimizer
    with pytest.raises(ValueError, match="How NAdam scales its steps is not known"):
        trainer.train()


def test_the_mixin_extends_the_seq2seq_trainer(tmp_path):
    class EWCSeq2SeqTrainer(EWCTrainerMixin, Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)
    )
    ewc = EWC(model, lam=3.0)
    ewc.merge({name: torch.ones_like(p) for name, p in model.named_parameters()})
    anchor = copy.deepcopy(model)
    trainer = EWCSeq2SeqTrainer(
        model,
        arguments(tmp_path, Seq2SeqTrainingArguments, eval_strategy="epoch", learning_rate=0.5),
        data_collator=collator(model),
        train_dataset=NEW,
        eval_dataset=NEW_TEST,
        ewc=ewc,
        old_eval_dataset=OLD_TEST,
        ewc_update="proximal",
    )
    ewc.lam = 1e9
    trainer.train()
    assert_same_weights(model, anchor, 1e-5)
    assert any("ewc_penalty" in entry for entry in trainer.state.log_history)
    assert any(
        {"eval_loss", "eval_old_loss"} <= entry.keys() for entry in trainer.state.log_history
    )


def run_process(rank, folder, port):
    import os

    torch.set_num_threads(1)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in world.items()}, MASTER_ADDR="127.0.0.1")
    model = gpt2()
    ewc = EWC(model)
    ewc.load_state_dict(torch.load(f"{folder}/ewc.pt", weights_only=True))
    model.load_state_dict(torch.load(f"{folder}/model.pt", weights_only=True))
    options = {"per_device_train_batch_size": 4, "ddp_backend": "gloo"}
    trainer_of(model, ewc, f"{folder}/run", **options).train()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # the threads of torch.distributed now and then abort a process that winds down


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    import socket

    model = gpt2()
    ewc = protected(model)
    torch.save(ewc.state_dict(), tmp_path / "ewc.pt")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(
        run_process, args=(str(tmp_path), port), nprocs=2, start_method=forked.METHOD
    )
    trainer_of(model, ewc, tmp_path / "one").train()
    for rank in range(2):
        other = gpt2()
        other.load_state_dict(torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert_same_weights(model, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 training needs a GPU")
@pytest.mark.parametrize(("update", "lam"), [("gradient", 3.0), ("proximal", 50.0)])
def test_a_gradient_scaler_changes_nothing(tmp_path, update, lam):
    weights = []
    for options in ({}, {"fp16": True, "max_grad_norm": 1.0}, {"fp16": True}):
        model = gpt2()
        ewc = protected(model, lam=lam)
        trainer_of(model, ewc, tmp_path, use_cpu=False, ewc_update=update, **options).train()
        weights.append(model)
    assert_same_weights(weights[0], weights[2], 1e-3)
