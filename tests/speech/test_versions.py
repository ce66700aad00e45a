"""A model that cannot be used never takes the place of one that can."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from contextlib import ExitStack

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the group 'speech' is not installed")

from safetensors.torch import load_file, save_file

from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.errors import RefusedError, UnusableModelError
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.serving import MAX_WAITING, Serving
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.versions import BASE, Versions

WAVE = 0.1 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)


@pytest.fixture
def models(tmp_path, tiny_model) -> Versions:
    """Three versions, each the parent of the next; the last is in use."""
    kept, parent = Versions(tmp_path / "models"), None
    for name in (BASE, "0001-a", "0002-b"):
        kept.add(
            name,
            lambda folder: shutil.copytree(tiny_model, folder, dirs_exist_ok=True),
            {"parent": parent},
        )
        parent = name
    kept.switch(parent)
    return kept


def change_weights(change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


def set_config(**values):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return damage


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGES = {
    "NaN": (change_weights(lambda w: w["lm_head.bias"].fill_(torch.nan)), "lm_head.bias"),
    "truncated": (truncated, "cannot be used"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be used"),
    "no vocabulary": (
        lambda folder: [p.unlink() for p in (folder / "vocab.json", folder / "tokenizer.json")
                        if p.exists()], "cannot be used"),
    "no CTC head": (change_weights(lambda w: [w.pop(n) for n in [*w] if "lm_head" in n]),
                    "no CTC head"),
    "another architecture": (set_config(model_type="hubert"), "'hubert'"),
    "fewer outputs than letters": (
        lambda folder: (set_config(vocab_size=9)(folder), change_weights(
            lambda w: w.update({n: w[n][:9].clone() for n in w if "lm_head" in n}))(folder)),
        "9 outputs"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "cannot be used"),
    "an empty file": (lambda folder: (folder / "config.json").write_text(""), "cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_at_the_start_the_parent_takes_the_place_of_a_damaged_version(models, kind, caplog):
    damage, words = DAMAGES[kind]
    damage(models.path("0002-b"))
    with pytest.raises(UnusableModelError, match=words) as caught:
        Recogniser(models.path("0002-b"))
    assert str(caught.value).count("\n") == 0
    serving = Serving(models)
    with caplog.at_level(logging.ERROR):
        serving.start()
    assert serving.current()[0] == models.current() == "0001-a"
    (record,) = (r for r in caplog.records if r.name.endswith("serving"))
    assert "Version 0001-a is served instead." in record.getMessage()
    assert "0002-b" in record.getMessage()
    assert record.exc_info is None


@pytest.mark.parametrize("pointer", ["0009-nothing", "", "../models/base", "\udcff", None])
def test_at_the_start_a_pointer_to_nothing_is_put_right(models, pointer):
    path = models.folder / "current"
    path.unlink()
    if pointer is not None:
        path.write_bytes(pointer.encode("utf-8", "surrogateescape"))
    serving = Serving(models)
    serving.start()
    assert serving.current()[0] == models.current() == BASE


def test_at_the_start_no_version_is_served_that_was_not_in_use_before(models):
    """Newer ones may have been kept without being served, or rolled back from."""
    models.switch("0001-a")
    for name in ("0001-a", BASE):
        assert models.exists("0002-b")
        truncated(models.path(name))
        if name == "0001-a":
            Serving(models).start()
            assert models.current() == BASE
    with pytest.raises(UnusableModelError, match=r"written into .*current\.$"):
        Serving(models).start()


def test_without_any_good_version_the_start_ends_in_one_sentence_each(models):
    for name in models.names():
        truncated(models.path(name))
    with pytest.raises(UnusableModelError, match=r"No model can be served\.") as caught:
        Serving(models).start()
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_version_never_takes_the_served_one_down(models, kind, caplog):
    serving = Serving(models)
    serving.start()
    text, _ = serving.transcribe(WAVE)
    DAMAGES[kind][0](models.path("0001-a"))
    with pytest.raises(RefusedError) as caught:
        serving.switch("0001-a")
    assert caught.value.status == 409
    assert models.current() == "0002-b"
    # Nor if somebody or a training turns the pointer; and the log says it once.
    models.switch("0001-a")
    for _ in range(3):
        assert serving.transcribe(WAVE) == (text, "0002-b")
    assert len([r for r in caplog.records if "stays in use" in r.getMessage()]) == 1


def test_versions_are_changed_back_and_forth(models):
    serving = Serving(models)
    serving.start()
    for name in ("0001-a", BASE, "0002-b"):
        serving.switch(name)
        assert serving.transcribe(WAVE)[1] == models.current() == name
    for name in ("nothing", "../models/base", "", ".half-x", "current"):
        with pytest.raises(RefusedError) as caught:
            serving.switch(name)
        assert caught.value.status == 404
    # A training publishes in another process.
    Versions(models.folder).switch("0001-a")
    assert serving.current()[0] == "0001-a"


def test_a_version_that_is_removed_while_it_is_loaded_is_not_put_into_use(models, monkeypatch):
    serving = Serving(models)
    serving.start()
    real = serving._load

    def load(name):
        loaded = real(name)
        shutil.rmtree(models.path(name))  # as prune() does, which has just looked at the pointer
        return loaded

    monkeypatch.setattr(serving, "_load", load)
    with pytest.raises(RefusedError, match="0001-a has just been removed") as caught:
        serving.switch("0001-a")
    assert caught.value.status == 409
    assert models.current() == serving.current()[0] == "0002-b"


def test_a_folder_in_half_precision_is_served_in_full(models):
    change_weights(lambda w: w.update({n: v.half() for n, v in w.items()}))(models.path("0002-b"))
    set_config(dtype="float16")(models.path("0002-b"))
    serving = Serving(models)
    serving.start()
    assert serving.current()[0] == "0002-b"
    assert {p.dtype for p in serving.current()[1].model.parameters()} == {torch.float32}
    serving.transcribe(WAVE)


def test_too_many_transcriptions_are_refused_and_nobody_else_waits(models):
    serving = Serving(models)
    serving.start()
    with ExitStack() as places:
        for _ in range(MAX_WAITING + 1):
            places.enter_context(serving.queue())
        with pytest.raises(RefusedError) as caught, serving.queue():
            pass
        assert caught.value.status == 503
    with serving.queue(), serving._hearing:
        assert serving.current()[0] == "0002-b"


def test_while_a_model_is_loaded_nobody_waits_who_does_not_need_it(models, monkeypatch):
    serving = Serving(models)
    serving.start()
    begun, go_on = threading.Event(), threading.Event()
    real = serving._load

    def slow(name):
        begun.set()
        assert go_on.wait(30)
        return real(name)

    monkeypatch.setattr(serving, "_load", slow)
    models.switch("0001-a")
    loading = threading.Thread(target=serving.current)
    loading.start()
    assert begun.wait(30)
    assert serving.peek()[0] == serving.current()[0] == "0002-b"
    go_on.set()
    loading.join()
    assert serving.peek()[0] == "0001-a"


def test_importance_is_a_versions_own_or_that_of_its_nearest_ancestor(models):
    assert models.importance("0002-b") is None
    for name in (BASE, "0001-a"):
        (models.path(name) / "importance.pt").write_bytes(b"")
        assert models.importance("0002-b") == models.path(name) / "importance.pt"
    assert models.importance(BASE) == models.path(BASE) / "importance.pt"
    assert list(models.line("0002-b")) == ["0002-b", "0001-a", BASE]
    # A version whose account of itself is damaged has no ancestors, and a circle has an end.
    (models.path("0002-b") / "version.json").write_text("[")
    assert models.importance("0002-b") is None
    (models.path("0001-a") / "version.json").write_text('{"parent": "0001-a"}')
    assert list(models.line("0001-a")) == ["0001-a"]


def test_a_cut_off_addition_leaves_nothing_and_can_be_repeated(models):
    def cut(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.add("0003-c", cut)
    assert not models.exists("0003-c")
    models.recover()
    models.add("0003-c", lambda folder: (folder / "whole").write_text("x"), {"parent": BASE})
    assert [p.name for p in models.path("0003-c").iterdir() if p.suffix != ".json"] == ["whole"]
    assert models.names() == ["0003-c", "0002-b", "0001-a", BASE]


@pytest.mark.parametrize("worker", ["here", "elsewhere"])
def test_a_start_leaves_alone_what_a_worker_elsewhere_is_writing(tmp_path, worker):
    models = Versions(tmp_path / "models")
    models.add(BASE, lambda folder: None)
    old, new = models.folder / ".half-0001-a", models.folder / ".half-0002-b"
    for half in (old, new):
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"0")
    part = models.path(BASE) / ".importance.pt.7.part"
    part.write_bytes(b"0")
    for path in (old / "model.safetensors", old, new):
        os.utime(path, (0, 0))
    prepare(Settings(data=tmp_path, model="tiny", worker=worker, database="postgresql://x/y"))
    assert [half.exists() for half in (old, new, part)] == [False, *[worker == "elsewhere"] * 2]
