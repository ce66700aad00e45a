"""The container's files are what their readers read, and speak of settings that there are."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

pytest.importorskip("pydantic_settings", reason="the group 'speech' is not installed")

from ewc_tutorial.speech.settings import PREFIX, Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path):
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed (there is none for Windows)")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text(encoding="utf-8") + "COPPY a b\n")
    assert subprocess.run([program, wrong], capture_output=True).returncode != 0


def test_the_compose_file_fits_the_schema_of_compose():
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema_rs.validate(schema, COMPOSE)


def settings_in(text: str) -> dict[str, str]:
    """Return the settings that a line ``EWC_SPEECH_NAME=value`` sets."""
    return dict(re.findall(rf"{PREFIX}(\w+)=(\S+)", text))


def test_both_set_only_what_there_is_and_the_service_starts_with_it(monkeypatch):
    image = settings_in(DOCKERFILE.read_text(encoding="utf-8"))
    service, worker = (COMPOSE["services"][name] for name in ("speech", "worker"))
    assert all("profiles" in s for s in COMPOSE["services"].values() if s is not service)
    given, of_worker = (
        {name.removeprefix(PREFIX): value for name, value in part["environment"].items()}
        for part in (service, worker)
    )
    known = {name.upper() for name in Settings.model_fields}
    assert image.keys() | given.keys() | of_worker.keys() <= known
    assert worker["volumes"] == service["volumes"], "they share what is kept"
    for name, value in image.items():
        monkeypatch.setenv(PREFIX + name, value)
    for name in given:
        monkeypatch.setenv(PREFIX + name, "")  # as compose sets what its user has not
    with pytest.raises(SystemExit, match="TOKEN must be set"):
        read_settings()
    assert ":?" in given["TOKEN"], "compose says so before it starts anything"
    monkeypatch.setenv(PREFIX + "TOKEN", "a-token-of-sixteen-or-more")
    settings = read_settings()
    (volume,) = (line.partition(":")[2] for line in service["volumes"])
    assert Path(volume) in settings.data.parents, "what is kept is in the volume"
    database = "postgresql://speech:x@postgres/speech"
    for name, value in (of_worker | {"DATABASE": database, "TOKEN": "", "WORKER": ""}).items():
        monkeypatch.setenv(PREFIX + name, value)
    assert read_settings().database == database, "a worker needs no token"
    (port,) = service["ports"]
    host, outside, inside = port.split(":")
    assert (host, outside, int(inside)) == ("127.0.0.1", inside, settings.port)
    assert f"EXPOSE {inside}" in DOCKERFILE.read_text(encoding="utf-8")


def test_what_the_image_copies_is_there_and_not_ignored():
    copied = re.findall(
        r"^COPY (?:--chown=\d+ )?(.*) \S+$", DOCKERFILE.read_text(encoding="utf-8"), re.M
    )
    names = [name for line in copied for name in line.split()]
    assert names
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    for name in names:
        assert (ROOT / name).exists(), name
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in left_out), name
