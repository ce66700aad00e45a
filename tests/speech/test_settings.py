"""Settings that would let somebody in, or measure importance on the wrong thing, are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("pydantic_settings", reason="the group 'speech' is not installed")

from ewc_tutorial.speech.settings import Settings, is_loopback, read_settings

TOKEN = "a-token-of-sixteen-or-more"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    import os

    for name in [n for n in os.environ if n.startswith("EWC_SPEECH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_the_german_model_on_this_machine_alone():
    settings = read_settings()
    assert settings.model == "facebook/wav2vec2-large-xlsr-53-german"
    assert is_loopback(settings.host)
    assert settings.old_folder == settings.data / "old"


def test_the_environment_sets_everything(monkeypatch):
    for name, value in {"LAM": "7.5", "PORT": "9000", "MODEL": "tiny", "TOKEN": TOKEN}.items():
        monkeypatch.setenv(f"EWC_SPEECH_{name}", value)
    settings = read_settings()
    assert (settings.lam, settings.port, settings.model) == (7.5, 9000, "tiny")
    assert TOKEN not in repr(settings)
    assert TOKEN not in str(settings.to_worker())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "speech.example.org"])
def test_a_public_address_needs_a_token(host):
    with pytest.raises(SystemExit, match="EWC_SPEECH_TOKEN must be set") as caught:
        read_settings(host=host)
    assert str(caught.value).count("\n") == 0
    assert read_settings(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "127.9.9.9"])
def test_this_machine_needs_none(host):
    assert read_settings(host=host).token is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [("token", "short"), ("lam", -1), ("lam", "nan"), ("port", 70_000), ("hold_out", 1),
     ("upload_token", TOKEN), ("upload_token", "short"), ("language", "xx"),
     ("retention_days", 0), ("origins", "*"),
     ("old", "speech_data/corrections"), ("old", "speech_data/corrections/a"), ("old", ".")],
)  # fmt: skip
def test_other_values_are_refused_in_one_sentence(setting, value):
    with pytest.raises(SystemExit) as caught:
        read_settings(**{setting: value})
    assert re.fullmatch(r"EWC_SPEECH_[A-Z_]+:? [^\n]+", str(caught.value))


def test_the_page_lists_every_setting():
    text = (Path(__file__).resolve().parents[2] / "docs" / "speech.md").read_text(encoding="utf-8")
    missing = [n for n in Settings.model_fields if f"`{n.upper()}`" not in text]
    assert missing == []
