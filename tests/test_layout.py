"""Three wings: the library knows neither the course nor the service, and needs PyTorch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ewc_tutorial"
WINGS = ("course", "speech")
MODULES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] not in WINGS]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of everything that a file imports anywhere; name is "" for modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which this test cannot follow"
            yield from ((node.module, alias.name) for alias in node.names)


def short(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", LIBRARY, ids=short)
def test_the_library_imports_neither_wing(path):
    for module, name in imports(path):
        for wing in WINGS:
            assert not f"{module}.{name}.".startswith(f"ewc_tutorial.{wing}."), (module, name)


def test_the_library_imports_what_it_declares_and_no_more():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {line.partition(">")[0] for line in project["dependencies"]}
    found = {
        module.partition(".")[0]
        for path in LIBRARY
        if not {"huggingface", "frameworks"} & {*path.parts}
        for module, _ in imports(path)
    }
    assert found - sys.stdlib_module_names - {"ewc_tutorial"} == declared


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_nothing_private_is_taken_from_another_room(path):
    room = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for module, name in imports(path):
        for part in f"{module}.{name}".split("."):
            private = part.startswith("_") and not part.endswith("__")
            inside = f"{module}." == f"{room}." or module.startswith(f"{room}.")
            assert not (private and module.startswith("ewc_tutorial")) or inside, (module, name)


@pytest.mark.slow
def test_the_library_needs_pytorch_numpy_and_tqdm_only():
    program = """
import sys
sys.path.insert(0, ".")
import ewc_tutorial
for part in ("unlearning", "course", "huggingface", "speech", "frameworks.avalanche"):
    try:
        __import__(f"ewc_tutorial.{part}")
    except ImportError as error:
        print(error)
print(ewc_tutorial.__file__, "sklearn" in sys.modules)
"""
    command = [sys.executable, str(ROOT / "tests" / "alone.py"), "torch,numpy,tqdm", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert last == f"{PACKAGE / '__init__.py'} False"
    parts = ("course", "huggingface", "speech", "frameworks.avalanche")
    for part, sentence in zip(parts, refused, strict=True):
        assert sentence.startswith(f"ewc_tutorial.{part} needs "), sentence
        extra = part.partition(".")[0]
        assert sentence.endswith(f"pip install 'ewc-tutorial[{extra}]'")
