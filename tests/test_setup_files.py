"""The files that set the course up agree with each other."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

import make

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"torch": "pytorch", "soundfile": "pysoundfile", "soxr": "soxr-python"}
#: Installed by `make lab`, beside the dependencies.
READER_GROUPS = ("lessons", "course", "huggingface", "speech")


def requirements(group: list[str]) -> dict[str, str]:
    """Return name -> range; a group that takes in another of ours says so in brackets."""
    own = [line.partition(";")[0] for line in group if not line.startswith("ewc-tutorial[")]
    return dict(re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[.*\])?(.*)", line).groups() for line in own)


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def environment() -> tuple[list[str], list[str]]:
    """Return what conda installs itself, and what it hands to pip."""
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (by_pip,) = (line["pip"] for line in conda if isinstance(line, dict))
    return [line for line in conda if isinstance(line, str)], by_pip


def test_conda_and_pip_ask_for_the_same(project, environment):
    conda, by_pip = environment
    assert "pip" in conda
    conda = [line for line in conda if line != "pip"]
    conda = requirements(conda + [line for line in by_pip if not line.startswith("-")])
    python = SpecifierSet("=" + conda.pop("python") + ".*")
    assert [v for v in range(99) if python.contains(f"3.{v}")] == [13]
    assert SpecifierSet(project["requires-python"]).contains("3.13")
    groups = [project["dependencies"]]
    groups += [project["optional-dependencies"][name] for name in READER_GROUPS]
    wanted = {CONDA_NAMES.get(k, k): v for group in groups for k, v in requirements(group).items()}
    assert conda == wanted


def test_pip_reads_its_part_of_the_environment(environment, tmp_path, monkeypatch):
    """Conda writes the part to a file beside environment.yml and calls ``pip install -r`` on it."""
    from pip._internal.network.session import PipSession
    from pip._internal.req import parse_requirements
    from pip._internal.req.constructors import install_req_from_parsed_requirement as understood

    monkeypatch.chdir(ROOT)
    _, by_pip = environment
    file = tmp_path / "condaenv.requirements.txt"
    file.write_text("\n".join(by_pip))
    found = [understood(line) for line in parse_requirements(str(file), PipSession())]
    (package,) = (item for item in found if item.editable)
    assert Path(package.local_file_path) == ROOT
    assert [item.name for item in found if not item.editable] == ["fastapi-offline"]


def test_binder_copies_the_repository_before_it_makes_the_environment(environment):
    """It does for ``-e PATH`` and ``--editable=PATH`` where the path begins with a dot, and takes
    the Python from a line ``python=…``; without them, 3.10 and no package."""
    conda, by_pip = environment
    assert any(re.fullmatch(r"(-e |--editable=)\..*", line) for line in by_pip)
    assert any(re.fullmatch(r"python=3\.\d+", line) for line in conda)


@pytest.mark.parametrize(
    "file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name
)
def test_workflows_are_what_github_reads(file):
    fits_schema("github-workflows", file)
    for job in yaml.safe_load(file.read_text())["jobs"].values():
        assert "timeout-minutes" in job
        lines = [step["run"] for step in job["steps"] if "run" in step]
        for command in re.findall(r"make\.py (\S+)", "\n".join(lines)):
            assert command in make.COMMANDS
        for script in re.findall(r"^\S*/\S+", "\n".join(lines), flags=re.M):
            assert (ROOT / script).exists() or script.startswith(("$", ".venv/"))


def test_issue_forms_are_what_github_reads():
    *forms, config = sorted(
        (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"), key=lambda file: file.stem == "config"
    )
    assert len(forms) == 3
    for file in forms:
        fits_schema("github-issue-forms", file)
    fits_schema("github-issue-config", config)
    commands = (ROOT / ".github" / "pull_request_template.md").read_text(encoding="utf-8")
    for command in re.findall(r"`make (\w+)", commands):
        assert command in make.COMMANDS


def test_the_citation_is_what_its_readers_read(project):
    file = ROOT / "CITATION.cff"
    fits_schema("citation-file-format", file)
    citation = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["keywords"] == project["keywords"]
    assert citation["authors"] == project["authors"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_everybody_names_the_same_pythons(project):
    low, high = make.OLDEST[1], make.PINS_NEWEST[1]
    served = {f"3.{minor}" for minor in range(low, high + 1)}
    assert project["requires-python"] == f">=3.{low}"
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line}
    assert named == served
    assert f"Python 3.{low} to 3.{high}" in (ROOT / "README.md").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    tried = set(re.findall(r'"(3\.\d+)"', workflow))
    assert tried == served


def fits_schema(name: str, file: Path) -> None:
    """Hold a file by the schema that its readers publish; check-jsonschema carries copies."""
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema_rs.validate(schema, YAML(typ="safe").load(file))


def test_every_requirement_is_pinned_within_its_range(project, constraints):
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
