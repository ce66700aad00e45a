"""What a training works with: one bad file is left out by name, and importance outlives files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import soundfile

pytest.importorskip("transformers", reason="the group 'speech' is not installed")

from ewc_tutorial.speech import audio, synthetic
from ewc_tutorial.speech.errors import NotLearnedError, RefusedError
from ewc_tutorial.speech.folders import recordings_in
from ewc_tutorial.speech.learning import Plan
from ewc_tutorial.speech.material import Measured, Reader, some, split_old, without
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.samples import in_memory

PLAN = Plan(fisher_samples=20)


@pytest.fixture(scope="module")
def recogniser(tiny_model) -> Recogniser:
    return Recogniser(tiny_model)


@pytest.fixture
def folder(tmp_path):
    """Nine good recordings and one of each fault."""
    synthetic.write_folder(tmp_path, synthetic.OLD_SPEAKERS, 9, seed=3)
    good, copies = tmp_path / "ada" / "0000.wav", []

    def copy(name, text):
        wave, rate = soundfile.read(good)
        copies.append(name)  # no two of them sound the same
        soundfile.write(tmp_path / name, wave * (1 - 0.02 * len(copies)), rate, format="WAV")
        if text is not None:
            (tmp_path / name).with_suffix(".txt").write_bytes(text)

    copy("no_text.wav", None)
    copy("no_letters.wav", b"Wo, bitte?")
    copy("cp1252.wav", "löwe".encode("cp1252"))
    copy("long_text.wav", b"old lion " * 30)
    copy("NAME.WAV", b"old lion")
    copy("empty.wav", b"old lion")
    (tmp_path / "empty.wav").write_bytes(b"")
    copy("half.wav", b"old lion")
    (tmp_path / "half.wav").write_bytes(good.read_bytes()[:30])
    (tmp_path / "._x.wav").write_bytes(b"macOS")
    soundfile.write(tmp_path / "10ms.wav", np.sin(np.arange(160)), 16_000)
    (tmp_path / "10ms.txt").write_text("a")
    return tmp_path


TEXTLESS = {"no_text.wav", "no_letters.wav", "cp1252.wav", "long_text.wav"}
UNREADABLE = {"empty.wav", "half.wav", "10ms.wav"}


def test_earlier_speech_needs_no_texts_and_what_cannot_be_read_is_named(folder, recogniser):
    reader = Reader(recogniser, 30.0)
    found = {path.name: text for path, text in reader.earlier_speech(recordings_in(folder))}
    assert {name for name, text in found.items() if text is None} == TEXTLESS
    assert found["NAME.WAV"] == "old lion"
    assert len(found) == 9 + 1 + len(TEXTLESS)
    said = {line.split(":")[0].split("/")[-1]: line for line in reader.left_out}
    assert said.keys() == UNREADABLE | TEXTLESS - {"no_text.wav"}
    assert "UTF-8" in said["cp1252.wav"]
    assert "importance alone" in said["no_letters.wav"]
    assert all("\n" not in line and line.endswith(".") for line in reader.left_out)


def test_corrections_need_both(folder, recogniser):
    reader = Reader(recogniser, 30.0)
    found = reader.corrections([*recordings_in(folder), folder / "deleted.wav"])
    assert len(found) == 10
    assert {line.split(":")[0].split("/")[-1] for line in reader.left_out} == (
        UNREADABLE | TEXTLESS | {"deleted.wav"}
    )


def test_a_recording_must_be_long_enough_for_the_masks_of_training(tiny_model, tmp_path):
    model = Recogniser(tiny_model)
    model.check_length(0.1)
    model.model.config.apply_spec_augment = True
    model.model.config.mask_time_prob = 0.05
    frames = model.model.config.mask_time_length
    shortest = next(n for n in range(16_000) if model.frames(n) >= frames)
    model.check_length(shortest / 16_000)
    with pytest.raises(RefusedError, match=f"needs {frames} frames"):
        model.check_length((shortest - 1) / 16_000)


def pairs(folder, recogniser):
    return Reader(recogniser, 30.0).earlier_speech(recordings_in(folder))


def split(folder, recogniser, plan=PLAN, known=None, max_tests=100):
    return split_old(pairs(folder, recogniser), max_tests, plan, known)


def test_a_third_of_what_has_texts_is_for_measuring_and_nothing_is_for_both(folder, recogniser):
    old, tests, record, known = split(folder, recogniser)
    assert not known
    assert (len(old), len(tests)) == (11, 3)
    assert not {p for p, _ in old} & {p for p, _ in tests}
    assert all(text for _, text in tests)
    # It depends on the content and not on the names.
    (folder / "zzz").mkdir()
    for path in recordings_in(folder):
        path.with_suffix(".txt").exists() and shutil.copy(
            path.with_suffix(".txt"), folder / "zzz" / f"a{path.stem}.txt"
        )
        path.rename(folder / "zzz" / f"a{path.name}")
    assert split(folder, recogniser)[2] == record


def test_one_sound_is_not_measured_and_learned_from_in_two_formats(folder, recogniser):
    for path in recordings_in(folder):
        if path.with_suffix(".txt").exists() and path.stat().st_size > 1000:
            soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
    old, tests, _, _ = split(folder, recogniser)
    assert tests
    both = [{audio.fingerprint(audio.read(p)) for p, _ in part} for part in (old, tests)]
    assert not both[0] & both[1]
    # Nor as earlier speech and as a correction.
    correction = folder / "zzz.flac"
    soundfile.write(correction, *soundfile.read(tests[0][0]))
    left = without(tests, [(correction, "old lion")])
    assert {p.stem for p, _ in left} == {p.stem for p, _ in tests} - {tests[0][0].stem}


def test_what_is_deleted_while_it_is_looked_at_is_left_out(folder, recogniser):
    kept = pairs(folder, recogniser)
    gone, others = kept[:2], kept[2:]
    for path, _ in gone:
        path.unlink()
    assert without(kept, others[:1]) == others[1:]
    assert without(others, kept[:3]) == others[1:]
    old, tests, _, _ = split(folder, recogniser)
    assert split_old([*gone, *old, *tests], 100, PLAN, None)[:2] == (old, tests)
    assert [text for _, text in in_memory([*gone, *others])] == [text for _, text in others]


def test_some_recordings_are_the_same_whatever_their_order_and_others(folder, recogniser):
    kept = pairs(folder, recogniser)
    few = some(kept, 4)
    assert some(kept[::-1], 4) == few
    others = [pair for pair in kept if pair not in few]
    assert some([*others[:3], *few], 4) == few
    assert sorted(map(str, some(kept, 99))) == sorted(map(str, kept))


def test_a_stored_importance_is_used_while_nothing_new_is_there(folder, recogniser, tmp_path):
    path = tmp_path / "importance.pt"
    old, tests, record, _ = split(folder, recogniser)
    path.write_bytes(b"x")
    record.write(path)
    assert not path.exists(), "it is about to be measured"
    known = Measured.beside(path)
    assert known == record

    again = split(folder, recogniser, known=known)
    assert ([*again[0]], [*again[1]], again[3]) == (old, tests, True)
    # Another form of importance, or more samples, are measured anew.
    assert not split(folder, recogniser, Plan(curvature="kronecker"), known)[3]
    # What was measured on is deleted: what is left is still for measuring errors.
    for sound, _ in old:
        sound.unlink()
    left = split(folder, recogniser, known=known)
    assert (left[1], left[3]) == (tests, True)
    for sound, _ in tests:
        sound.unlink()
    assert split(folder, recogniser, known=known) == ([], [], known, True)
    with pytest.raises(NotLearnedError, match="no earlier speech"):
        split(folder, recogniser)
    with pytest.raises(NotLearnedError, match="kronecker"):
        split(folder, recogniser, Plan(curvature="kronecker"), known)
    # Other speech takes its place: the importance of what is gone will not do for it.
    synthetic.write_folder(folder, synthetic.OLD_SPEAKERS, 3, seed=77)
    assert not split(folder, recogniser, known=known)[3]
