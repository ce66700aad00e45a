"""The ways to start without a set-up: dev container, Binder, Colab. Nothing is built here; the
workflow ``containers.yml`` builds all three (``tests/test_images.py``)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from ewc_tutorial.course import address

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HERE = "https://github.com/someone/ewc"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
#: Those properties of https://containers.dev/implementors/json_reference/ that the file may use.
PROPERTIES = {
    "name", "build", "remoteUser", "postCreateCommand", "forwardPorts", "portsAttributes",
    "hostRequirements", "customizations",
}  # fmt: skip


def test_the_dev_container_asks_for_what_the_dockerfile_has():
    folder = ROOT / ".devcontainer"
    container = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    assert container.keys() <= PROPERTIES
    build = container["build"]
    assert (folder / build["dockerfile"]).resolve() == ROOT / "docker" / "Dockerfile"
    assert (folder / build["context"]).resolve() == ROOT
    stage = re.search(
        rf"^FROM base AS {build['target']}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S
    )
    exposed = re.search(r"^EXPOSE (.*)$", stage[1], re.M)[1].split()
    assert [str(port) for port in container["forwardPorts"]] == exposed
    assert list(container["portsAttributes"]) == exposed
    assert f"useradd --uid 1000 --create-home {container['remoteUser']}" in DOCKERFILE
    for amount in ("memory", "storage"):
        assert re.fullmatch(r"\d+gb", container["hostRequirements"][amount])
    (venv,) = re.findall(r"EWC_TUTORIAL_VENV=(\S+)", stage[1])
    assert f"VIRTUAL_ENV={venv} " in DOCKERFILE
    pip, *_ = container["postCreateCommand"].split()
    python = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert (pip, python) == (f"{venv}/bin/pip", f"{venv}/bin/python")
    assert all((ROOT / n).exists() for n in container["customizations"]["codespaces"]["openFiles"])


def test_make_takes_the_environment_of_the_image_and_its_own_elsewhere():
    def venv_with(**set_to: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "EWC_TUTORIAL_VENV"}
        program = [sys.executable, "-c", "import make; print(make.VENV)"]
        done = subprocess.check_output(program, env=environment | set_to, cwd=ROOT, text=True)
        return done.strip()

    assert venv_with(EWC_TUTORIAL_VENV="/opt/venv") == str(Path("/opt/venv"))
    assert venv_with() == venv_with(EWC_TUTORIAL_VENV="") == str(ROOT / ".venv")


def test_binder_makes_the_conda_environment_and_not_the_speech_service(monkeypatch):
    """A Dockerfile beside the README, or in a folder binder/, is what repo2docker would build."""
    pytest.importorskip("docker", reason="repo2docker is not installed (there is none for Windows)")
    app = pytest.importorskip("repo2docker.app", reason="repo2docker is not installed")
    monkeypatch.chdir(ROOT)
    packs = (pack("base") for pack in app.Repo2Docker().buildpacks)
    pack = next(pack for pack in packs if pack.detect())
    assert type(pack).__name__ == "CondaBuildPack"
    assert pack.python_version == "3.13"
    assert pack.environment_yaml == yaml.safe_load((ROOT / "environment.yml").read_text())
    # The environment holds this package, so the repository has to be there before it.
    assert not pack._should_preassemble_env
    (made,) = (script for _, script in pack.get_assemble_scripts() if "env update" in script)
    assert '--file "environment.yml"' in made
    assert pack.get_post_build_scripts() == ["postBuild"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_what_binder_runs_last_can_run(tmp_path):
    script = ROOT / "postBuild"
    if os.name == "posix":
        assert os.access(script, os.X_OK)
    for name in ("python", "jupyter"):  # programs that note how they were called
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
        (tmp_path / name).chmod(0o755)
    search = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", script], cwd=ROOT, env={"PATH": search}, capture_output=True, text=True, check=True
    )
    called = done.stdout.splitlines()
    assert called[called.index("trust") + 1 :] == [f"notebooks/{n.name}" for n in NOTEBOOKS]
    compile(called[2], "postBuild", "exec")


def test_what_is_committed_has_the_address_or_none():
    here = address.repository()
    for path in NOTEBOOKS:
        source = nbformat.read(path, as_version=4).cells[0].source
        link = re.findall(r"^\[Open in Colab\].*$", source, re.M)
        assert link == ([] if here is None else [address.badges(here, path.name)])
    cloned = f"git clone {here or 'ADDRESS'} ewc-tutorial"
    assert cloned in (ROOT / "README.md").read_text(encoding="utf-8")


def set_in(folder: Path, urls: str) -> str | None:
    """Return the address that a pyproject.toml with these lines has."""
    file = folder / "pyproject.toml"
    file.write_text(f'[project]\nname = "x"\n{urls}', encoding="utf-8")
    return address.repository(file)


def test_an_address_is_one_of_github_or_refused(tmp_path):
    assert set_in(tmp_path, "") is None
    assert set_in(tmp_path, f'urls = {{ Repository = "{HERE}" }}') == HERE
    for wrong in (f"{HERE}/tree/main", "git@github.com:someone/ewc.git", "https://example.org/a/b"):
        with pytest.raises(ValueError, match=f"not '{re.escape(wrong)}'"):
            set_in(tmp_path, f'urls = {{ Repository = "{wrong}" }}')


@pytest.fixture(scope="module")
def lessons(tmp_path_factory) -> list[Path]:
    """Copies of all lessons that were given an address, twice."""
    folder = tmp_path_factory.mktemp("lessons")
    copies = [Path(shutil.copy(path, folder)) for path in NOTEBOOKS]
    for address_now in ("https://github.com/other/place", HERE):
        for path in copies:
            address.into_lesson(path, address_now)
    return copies


def test_every_lesson_has_its_links_and_its_first_cell_once(lessons):
    for path, original in zip(lessons, NOTEBOOKS, strict=True):
        made, was = (nbformat.read(p, as_version=4) for p in (path, original))
        head = made.cells[0].source
        assert head.count("Open in Colab") == head.count("Open in Binder") == 1
        assert "other/place" not in path.read_text(encoding="utf-8")
        (file,) = re.findall(r"/github/someone/ewc/blob/HEAD/(\S+)\)", head)
        assert (ROOT / file) == original
        code = [cell for cell in made.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert code[0].metadata.tags == ["install"]
        rest = [c.source for c in made.cells[1:] if c.get("id") != code[0].id]
        assert rest == [
            c.source for c in was.cells[1:] if "install" not in c.metadata.get("tags", ())
        ]


def test_the_first_cell_installs_where_the_course_is_missing_and_only_there(lessons, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.testing.globalipapp import get_ipython, start_ipython

    shell: InteractiveShell = start_ipython() or get_ipython()
    called = []
    shell.register_magic_function(called.append, magic_name="pip")
    cell = nbformat.read(lessons[0], as_version=4).cells[1].source
    shell.run_cell(cell).raise_error()
    assert called == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    shell.run_cell(cell).raise_error()
    (line,) = called
    assert line == f'install --quiet "ewc-tutorial[lessons,speech] @ git+{HERE}"'


def test_the_readme_takes_the_address_too(tmp_path):
    readme = Path(shutil.copy(ROOT / "README.md", tmp_path))
    for _ in range(2):
        address.into_readme(readme, HERE)
    text = readme.read_text(encoding="utf-8")
    assert f"git clone {HERE} ewc-tutorial" in text
    assert f'"ewc-tutorial[lessons,speech] @ git+{HERE}"' in text
    assert text.count("[Open in Colab]") == 1
