"""The images are built and do their work. ``.github/workflows/containers.yml`` asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = str(ROOT / "docker" / "Dockerfile")
ASKED = "EWC_TUTORIAL_IMAGES"
CHECK = (
    "import torch, ewc_tutorial.course, ewc_tutorial.speech; "
    "assert torch.version.cuda is None, torch.__version__"
)


def docker(*line: str, seconds: float = 60.0) -> str:
    done = subprocess.run(["docker", *line], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def daemon() -> None:
    if not os.environ.get(ASKED):
        pytest.skip(f"builds images, which takes about ten minutes: {ASKED}=1 asks for it")
    if shutil.which("docker") is None or subprocess.call(["docker", "info"]):
        pytest.skip("no Docker daemon answers here")


def until(holds: str, container: str, seconds: float = 180.0) -> None:
    """Wait until a program says yes inside a container."""
    end = time.monotonic() + seconds
    while subprocess.call(["docker", "exec", container, "python", "-c", holds]):
        assert time.monotonic() < end, docker("logs", container)
        time.sleep(2.0)


def answers(address: str) -> str:
    return f"import urllib.request; urllib.request.urlopen('{address}', timeout=4)"


@pytest.mark.timeout(2400)
def test_the_image_of_the_course_has_both_commands_and_the_service():
    docker(
        "build",
        "--file",
        DOCKERFILE,
        "--target",
        "course",
        "--tag",
        "ewc-course",
        str(ROOT),
        seconds=2000,
    )
    docker("run", "--rm", "ewc-course", "python", "-c", CHECK)
    # `make test` would find nothing to install, and runs.
    once = "from make import *; set_up('test', False, ''); print(len(COMMANDS))"
    said = docker("run", "--rm", "--network=none", "ewc-course", "python", "-c", once)
    assert "Setting up" not in said
    tests = ("tests/test_ewc.py", "tests/test_one_click.py")
    docker("run", "--rm", "ewc-course", "python", "-m", "pytest", "-q", *tests, seconds=300)
    lab = docker("run", "--rm", "--detach", "ewc-course")
    try:
        until(answers("http://127.0.0.1:8888/api"), lab)
        speech = ("--detach", "--env", "EWC_SPEECH_MODEL=tiny", lab, "make", "speech")
        docker("exec", *speech)
        until(answers("http://127.0.0.1:8017/health"), lab, seconds=400)
    finally:
        docker("kill", lab)


@pytest.mark.timeout(1200)
def test_the_image_of_the_service_answers():
    docker("build", "--file", DOCKERFILE, "--tag", "ewc-speech", str(ROOT), seconds=1000)
    docker(
        "run", "--rm", "--entrypoint=python", "ewc-speech", "-c", CHECK.replace("course", "files")
    )
    token = "EWC_SPEECH_TOKEN=a-token-of-sixteen-or-more"
    tiny = ("--env", "EWC_SPEECH_MODEL=tiny", "--env", token)
    service = docker("run", "--rm", "--detach", *tiny, "ewc-speech")
    try:
        until(answers("http://127.0.0.1:8017/health"), service, seconds=400)
    finally:
        docker("kill", service)
