"""Replay, losses that are no numbers, files that vanish, and an importance that is used again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the group 'speech' is not installed")

from ewc_tutorial.speech import synthetic
from ewc_tutorial.speech.errors import NotLearnedError
from ewc_tutorial.speech.learning import Plan, learn
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.samples import Samples
from ewc_tutorial.speech.training import Mixture

PLAN = Plan(
    lam=100.0, steps=3, learning_rate=2e-3, freeze_encoder=False, checkpoint_every=100,
    fisher_samples=4, batch_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def old():
    return [(w, t) for w, t, _ in synthetic.recordings(synthetic.OLD_SPEAKERS, 6, seed=5)]


@pytest.fixture(scope="module")
def new():
    return [(w, t) for w, t, _ in synthetic.recordings([synthetic.NEW_SPEAKER], 6, seed=6)]


@pytest.mark.parametrize(
    ("share", "size", "per_batch"),
    [(0.5, 8, 4), (0.25, 8, 2), (0.01, 8, 1), (0.99, 8, 7), (0.5, 2, 1), (0.3, 5, 2)],
)
def test_every_batch_has_its_share_and_every_recording_its_turn(share, size, per_batch):
    n_new, n_old, steps = 7, 5, 35
    order = list(Mixture(n_new, n_old, steps, size, share, seed=1))
    batches = np.array(order).reshape(steps, size)
    assert ((batches >= n_new).sum(axis=1) == per_batch).all()
    counts = Counter(order)
    for kind, n, total in (
        (range(n_new), n_new, steps * (size - per_batch)),
        (range(n_new, n_new + n_old), n_old, steps * per_batch),
    ):
        turns = [counts[i] for i in kind]
        assert sum(turns) == total
        assert max(turns) - min(turns) <= 1
        assert min(turns) >= total // n
    assert order == list(Mixture(n_new, n_old, steps, size, share, seed=1))
    assert order != list(Mixture(n_new, n_old, steps, size, share, seed=2))


def test_replay_needs_texts_and_room():
    with pytest.raises(NotLearnedError, match="batches of at least 2"):
        Mixture(3, 3, 1, 1, 0.5, 0)


def test_the_trainer_takes_the_batches_of_the_mixture(tiny_model, old, new, monkeypatch):
    """What reaches the model, told by the lengths of the recordings."""
    recogniser, seen = Recogniser(tiny_model), []
    lengths = [len(wave) for wave, _ in (*new, *old)]
    assert len(set(lengths)) == len(lengths)
    real = Recogniser.collate

    def collate(samples):
        seen.append([lengths.index(len(sample["input_values"])) for sample in samples])
        return real(samples)

    monkeypatch.setattr(Recogniser, "collate", staticmethod(collate))
    learn(recogniser, [*old, (old[0][0], None)], new, replace(PLAN, lam=0.0, replay=0.5))
    assert seen == np.reshape(list(Mixture(6, 6, 3, 4, 0.5, seed=0)), (3, 4)).tolist()
    with pytest.raises(NotLearnedError, match="texts"):
        learn(recogniser, [(old[0][0], None)], new, replace(PLAN, replay=0.5))


@pytest.mark.parametrize("lam", [0.0, 100.0])
def test_a_loss_that_is_no_number_ends_a_training_in_a_sentence(tiny_model, old, new, lam):
    huge = [(np.full(8_000, 3e38, np.float32), text) for _, text in new]
    heard = []
    with pytest.raises(NotLearnedError, match=r"At step 1 the loss was nan .* smaller learning"):
        learn(
            Recogniser(tiny_model), old, huge, replace(PLAN, lam=lam),
            listener=lambda *values: heard.append(values),
        )  # fmt: skip
    assert heard == []


def test_a_file_that_vanishes_during_a_training_is_passed_over(tiny_model, tmp_path, caplog):
    recogniser = Recogniser(tiny_model)
    written = synthetic.write_folder(tmp_path, [synthetic.NEW_SPEAKER], 3, seed=1)
    samples = Samples(recogniser, written)
    whole = list(samples)
    written[1][0].unlink()
    written[2][0].write_bytes(b"RIFF")
    for sample in samples:
        assert torch.equal(sample["input_values"], whole[0]["input_values"])
    assert written[1][0].name in caplog.text
    written[0][0].unlink()
    with pytest.raises(NotLearnedError, match="None of the 3"):
        samples[0]


def test_a_stored_importance_holds_without_earlier_speech(tiny_model, old, new, tmp_path):
    stored = tmp_path / "importance.pt"
    plan = replace(PLAN, steps=8, lam=1e6)

    def moved(lam, old):
        recogniser = Recogniser(tiny_model)
        start = {n: p.detach().clone() for n, p in recogniser.model.named_parameters()}
        learn(recogniser, old, new, replace(plan, lam=lam), importance=stored)
        pairs = recogniser.model.named_parameters()
        return sum((p - start[n]).square().sum().item() for n, p in pairs)

    with pytest.raises(NotLearnedError, match="no earlier speech"):
        moved(1e6, [])
    # Texts do not matter for it.
    first = moved(1e6, [(wave, None) for wave, _ in old])
    state = torch.load(stored, weights_only=True)
    assert moved(1e6, []) == first
    # At λ = 0 it is measured, too, if it is to be kept.
    stored.unlink()
    moved(0.0, old)
    again = torch.load(stored, weights_only=True)
    assert all(torch.equal(v, again[n]) for n, v in state.items() if isinstance(v, torch.Tensor))
    # λ is this training's, not that of the one that measured it.
    assert moved(1e-9, []) > 1.5 * first
    again = torch.load(stored, weights_only=True)
    assert all(torch.equal(v, again[n]) for n, v in state.items() if isinstance(v, torch.Tensor))
