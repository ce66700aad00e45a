"""A room without a network: the real make.py on a stand-in of the course, which is a kilobyte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import make

ROOT = Path(__file__).resolve().parent.parent
TAGS = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
#: Builds the stand-in without setuptools, which would have to come from somewhere, too.
BACKEND = '''
import zipfile

METADATA = """Metadata-Version: 2.1
Name: standin
Version: 1.0
Provides-Extra: all
Requires-Dist: needed; extra == "all"
"""


def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "standin-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("standin-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("standin-1.0.dist-info/WHEEL", TAGS)
        wheel.writestr("standin-1.0.dist-info/RECORD", "")
    return name


build_editable = build_wheel
'''
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "standin"
version = "1.0"
"""


@pytest.mark.slow
def test_a_wheelhouse_serves_a_machine_without_a_network(tmp_path):
    shutil.copy(ROOT / "make.py", tmp_path)
    (tmp_path / "backend.py").write_text(BACKEND + f"TAGS = {TAGS!r}\n")
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("needed==2.0\n")
    wheels = tmp_path / make.WHEELS
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "needed-2.0-py3-none-any.whl", "w") as wheel:
        about = "Metadata-Version: 2.1\nName: needed\nVersion: 2.0\n"
        wheel.writestr("jupyterlab.py", "print('opened from the wheelhouse')")
        for name, text in {"METADATA": about, "WHEEL": TAGS, "RECORD": ""}.items():
            wheel.writestr(f"needed-2.0.dist-info/{name}", text)
    done = subprocess.run(
        [sys.executable, "make.py", "lab"],
        cwd=tmp_path,
        env=os.environ | {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "opened from the wheelhouse" in done.stdout
