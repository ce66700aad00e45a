"""The pipeline without the server: speech, spelling, error rates, learning and resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the group 'speech' is not installed")
pytest.importorskip("jiwer", reason="the group 'speech' is not installed")

from ewc_tutorial.speech import synthetic
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.learning import Plan, evaluate, heard_by, learn
from ewc_tutorial.speech.recogniser import Recogniser, word_error_rate

PLAN = Plan(
    lam=100.0, steps=12, learning_rate=2e-3, freeze_encoder=False, checkpoint_every=4,
    fisher_samples=6, batch_size=4,
)  # fmt: skip


@pytest.fixture
def recogniser(tiny_model) -> Recogniser:
    return Recogniser(tiny_model)


@pytest.fixture(scope="module")
def old():
    return [(w, t) for w, t, _ in synthetic.recordings(synthetic.OLD_SPEAKERS, 9, seed=5)]


@pytest.fixture(scope="module")
def new():
    return [(w, t) for w, t, _ in synthetic.recordings([synthetic.NEW_SPEAKER], 8, seed=6)]


def weights(recogniser: Recogniser) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in recogniser.model.named_parameters()}


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[n] - b[n]).abs().max().item() for n in a)


def test_a_letter_is_two_tones_at_the_pitch_of_its_speaker():
    clear = synthetic.Speaker("x", pitch=1.2, pace=0.2, overtones=(0.0, 0.0), noise=0.0)
    wave = synthetic.say("d", clear, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    hertz = np.fft.rfftfreq(len(wave), 1 / synthetic.RATE)
    low = hertz[np.where(hertz < 1000, spectrum, 0).argmax()]
    high = hertz[np.where(hertz > 1000, spectrum, 0).argmax()]
    # "d" is the second key of the first row.
    assert low == pytest.approx(1.2 * synthetic.LOW_TONES[0], rel=0.04)
    assert high == pytest.approx(1.2 * synthetic.HIGH_TONES[1], rel=0.04)
    assert high / low == pytest.approx(synthetic.HIGH_TONES[1] / synthetic.LOW_TONES[0], rel=0.01)


def test_speech_repeats_with_its_seed_and_stays_within_bounds():
    one, two = (synthetic.recordings(synthetic.OLD_SPEAKERS, 6, seed=3) for _ in range(2))
    for (wave, text, name), (wave2, text2, name2) in zip(one, two, strict=True):
        assert (text, name) == (text2, name2)
        assert np.array_equal(wave, wave2)
        assert wave.dtype == np.float32
        assert np.abs(wave).max() <= 1
    with pytest.raises(ValueError, match="'q'"):
        synthetic.say("quiet", synthetic.NEW_SPEAKER, np.random.default_rng(0))


def edit_distance(a: list[str], b: list[str]) -> int:
    """The textbook recursion."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return edit_distance(a[1:], b[1:])
    return 1 + min(edit_distance(a[1:], b), edit_distance(a, b[1:]), edit_distance(a[1:], b[1:]))


def test_the_word_error_rate_is_the_edit_distance_per_word():
    pairs = [("a b c", "a c"), ("a b", "b a"), ("a", "x y z"), ("a b c d", "a b c d"), ("a", "")]
    for text, heard in pairs:
        wanted = edit_distance(text.split(), heard.split()) / len(text.split())
        assert word_error_rate([text], [heard]) == pytest.approx(wanted)
    # Over several texts it is per word, not per text.
    assert word_error_rate(["a b c", "d"], ["a b c", "x"]) == pytest.approx(1 / 4)


def test_spelling_makes_a_text_what_the_model_writes(recogniser):
    clean = recogniser.spelling.clean
    assert clean("  Old\n LION ", 100) == "old lion"
    assert (
        recogniser.processor.tokenizer.decode(
            recogniser.processor.tokenizer("old lion").input_ids, group_tokens=False
        )
        == "old lion"
    )
    for text, words in {
        "": "empty", " \n": "empty", "old lion!": "'!'", "zebra": "'b' 'z'", "old|lion": r"'\|'",
        "lion\x00": r"\\x00", "old" * 50: "at most 100", "<pad>": "'<'", "ⅼion": "u217c",
    }.items():  # fmt: skip
        with pytest.raises(RefusedError, match=words):
            clean(text, 100)


def test_a_text_needs_room_in_its_recording(recogniser):
    recogniser.check_room("hill", 0.2)
    with pytest.raises(RefusedError, match="too long"):
        recogniser.check_room("hill" * 10, 0.2)
    # Double letters need a blank between them.
    frames = recogniser.frames(3200)
    recogniser.check_room("ad" * (frames // 2), 0.2)
    with pytest.raises(RefusedError):
        recogniser.check_room("a" * (frames // 2 + 2), 0.2)


def test_recordings_are_heard_a_few_at_a_time(recogniser, old, monkeypatch):
    whole, sizes, real = heard_by(recogniser, old * 3), [], recogniser.transcribe

    def transcribe(waves):
        sizes.append(len(waves))
        return real(waves)

    monkeypatch.setattr(recogniser, "transcribe", transcribe)
    assert heard_by(recogniser, old * 3).errors.tolist() == whole.errors.tolist()
    assert sizes == [8, 8, 8, 3]


def test_padding_changes_no_transcript(recogniser, old):
    waves = [wave for wave, _ in old]
    alone = [recogniser.transcribe([wave])[0] for wave in waves]
    assert recogniser.transcribe(waves) == alone


def test_learning_interrupted_anywhere_ends_where_it_would_have(tiny_model, old, new, tmp_path):
    whole = Recogniser(tiny_model)
    learn(whole, old, new, PLAN, tmp_path / "whole")

    class Killed(BaseException):
        pass

    for stop_at in (1, 6, 11):
        heard = []

        def listener(step, loss, penalty, heard=heard, stop_at=stop_at):
            heard.append(step)
            if step == stop_at and heard.count(step) == 1:
                raise Killed

        work, phases = tmp_path / str(stop_at), []
        with pytest.raises(Killed):
            learn(Recogniser(tiny_model), old, new, PLAN, work, listener)
        # A checkpoint that was being written at that moment.
        (work / "checkpoints" / "checkpoint-99").mkdir(parents=True)
        again = Recogniser(tiny_model)
        learn(again, old, new, PLAN, work, listener, phases.append)
        assert far(weights(whole), weights(again)) == 0
        assert phases == ["learning"], "the Fisher information is not measured twice"
        resumed_at = heard[heard.index(stop_at) + 1]
        assert resumed_at == stop_at // 4 * 4 + 1


def test_learning_leaves_random_states_alone(recogniser, old, new):
    import random

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    wanted = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    learn(recogniser, old, new, Plan(steps=1, freeze_encoder=False, fisher_samples=2))
    assert (torch.rand(1), np.random.rand(), random.random()) == wanted


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_lambda_holds_the_weights(tiny_model, old, new, curvature):
    from dataclasses import replace

    start = weights(Recogniser(tiny_model))
    moved = {}
    for lam in (0.0, 1e6):
        recogniser = Recogniser(tiny_model)
        learn(recogniser, old, new, replace(PLAN, lam=lam, curvature=curvature))
        moved[lam] = sum((weights(recogniser)[n] - w).square().sum() for n, w in start.items())
    assert moved[1e6] < 0.8 * moved[0.0]


def test_importance_is_measured_on_the_old_recordings_alone(tiny_model, old, new, tmp_path):
    """Other corrections leave the importance bit for bit the same; other old speech does not."""
    from dataclasses import replace

    plan = replace(PLAN, steps=1)

    def importance(old, new, name):
        learn(Recogniser(tiny_model), old, new, plan, tmp_path / name)
        state = torch.load(tmp_path / name / "importance.pt", weights_only=True)
        return {n: v for n, v in state.items() if isinstance(v, torch.Tensor)}

    first = importance(old, new, "a")
    second = importance(old, new[::-1][:4], "b")
    third = importance(new, new, "c")
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not all(torch.equal(first[n], third[n]) for n in first)


def test_the_frozen_encoder_and_lora_move_only_what_they_say(tiny_model, old, new):
    from dataclasses import replace

    start = weights(Recogniser(tiny_model))
    recogniser = Recogniser(tiny_model)
    learn(recogniser, old, new, replace(PLAN, freeze_encoder=True, lora_rank=2))
    after = weights(recogniser)
    assert after.keys() == start.keys(), "the adapters have been merged"
    moved = {n for n in start if not torch.equal(start[n], after[n])}
    assert moved
    assert all(n.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "out_proj") for n in moved)
    assert 0 <= evaluate(recogniser, old) < 10
