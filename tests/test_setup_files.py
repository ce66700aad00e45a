"""The files that set the course up agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"torch": "pytorch", "soundfile": "pysoundfile", "soxr": "soxr-python"}
#: Installed by `make lab`, beside the dependencies.
READER_GROUPS = ("course", "huggingface", "speech")


def requirements(group: list[str]) -> dict[str, str]:
    """Return name -> range; a group that takes in another of ours says so in brackets."""
    own = [line for line in group if not line.startswith("ewc-tutorial[")]
    return dict(re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[.*\])?(.*)", line).groups() for line in own)


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def test_conda_and_pip_ask_for_the_same(project):
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (by_pip,) = (line["pip"] for line in conda if isinstance(line, dict))
    conda = [line for line in conda if isinstance(line, str) and line != "pip"]
    conda = requirements(conda + [line for line in by_pip if not line.startswith("-")])
    groups = [project["dependencies"]]
    groups += [project["optional-dependencies"][name] for name in READER_GROUPS]
    wanted = {CONDA_NAMES.get(k, k): v for group in groups for k, v in requirements(group).items()}
    assert conda == {"python": project["requires-python"], **wanted}


def test_every_requirement_is_pinned_within_its_range(project, constraints):
    from packaging.specifiers import SpecifierSet

    optional = project["optional-dependencies"]
    # The group `bench` is other people's code, installed by hand where it is measured.
    groups = [project["dependencies"], *(optional[name] for name in optional if name != "bench")]
    for name, ranges in (item for group in groups for item in requirements(group).items()):
        assert constraints[name.lower()] in SpecifierSet(ranges), name


def test_torch_and_torchvision_are_the_tested_pair(constraints):
    assert (constraints["torch"], constraints["torchvision"]) == ("2.14.1", "0.29.1")


def test_constraints_hold_versions_alone():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line)
