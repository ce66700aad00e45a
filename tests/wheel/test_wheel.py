"""The package as others get it: a wheel, installed by itself, far from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel out of a copy, as building leaves things behind."""
    source, built = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ewc_tutorial", source / "ewc_tutorial", ignore=ignored)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(built)]
    subprocess.run([*PIP, "wheel", *options, str(source)], check=True)
    (wheel,) = built.iterdir()
    return wheel


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("place")
    options = ["--no-deps", "--no-index", "--target", str(place)]
    subprocess.run([*PIP, "install", *options, str(wheel)], check=True)
    return place


def said(place: Path, folder: Path, *command: str) -> str:
    """Run Python in a folder where only the installed wheel is the package."""
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    environment.pop("EWC_TUTORIAL_DATA", None)
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_package_and_nothing_else(wheel):
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ewc_tutorial").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == files
    assert "ewc_tutorial/py.typed" in files


def test_the_library_works_with_pytorch_numpy_and_tqdm_alone(place, tmp_path):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    program = """
import torch
import ewc_tutorial
from ewc_tutorial import EWC, diagnose, fisher_diagonal
from ewc_tutorial.unlearning import TaskMemory
from readme_examples import data, examples, names_of_the_library
names = names_of_the_library()
exec(examples()[0], names)
model = names["model"]
report = diagnose(model, names["ewc"], data(1))
fisher = fisher_diagonal(model, data(1))
assert sorted(fisher) == sorted(name for name, _ in model.named_parameters())
memory = TaskMemory(EWC(model, lam=1))
for seed, task in ((1, "A"), (2, "B")):
    memory.begin(task)
    memory.consolidate(data(seed))
memory.forget("A")
for part in ("course", "huggingface", "speech"):
    try:
        __import__(f"ewc_tutorial.{part}")
    except ImportError as error:
        print(error)
print(ewc_tutorial.__file__, ewc_tutorial.__version__)
"""
    only = [str(ROOT / "tests" / "alone.py"), "torch,numpy,tqdm", program]
    *refused, last = said(place, tmp_path, *only).splitlines()
    assert last == f"{place / 'ewc_tutorial' / '__init__.py'} {version}"
    for part, sentence in zip(("course", "huggingface", "speech"), refused, strict=True):
        assert sentence.endswith(f"pip install 'ewc-tutorial[{part}]'"), sentence


def test_the_course_finds_its_tables(place, tmp_path):
    program = """
from ewc_tutorial.course import permuted_tasks, tables
for path in sorted(tables.FOLDER.glob("*.csv")):
    print(path.stem, len(tables.load(path.stem)))
assert len(permuted_tasks(1)[0].train) > 1000
"""
    found = dict(line.split() for line in said(place, tmp_path, "-c", program).splitlines())
    ours = sorted((ROOT / "ewc_tutorial" / "course" / "tables").glob("*.csv"))
    assert list(found) == [path.stem for path in ours]
    assert all(int(rows) > 0 for rows in found.values())


def test_the_course_writes_the_page_of_its_lab(place, tmp_path):
    said(place, tmp_path, "-m", "ewc_tutorial.course.explorer.page", "lab.html")
    assert "class Learner" in (tmp_path / "lab.html").read_text(encoding="utf-8")
