"""The program that sets the course up: what it asks of pip and of Python, and when. Nothing is
installed here; where it would run another program, the test notes which."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pip._internal.commands import create_command

import make
from make import Environment

ROOT = Path(__file__).resolve().parent.parent
WANTED = Environment("abc", "all", ranges=False, torch_index="")


# --- arguments --------------------------------------------------------------------------------


def test_arguments_of_a_command_keep_their_order_and_ours_stand_anywhere():
    ours, options = make.parse(
        ["lab", "--no-browser", "--ranges", "--port", "8899", "--torch-index=https://here"]
    )
    assert (ours.command, ours.ranges, ours.torch_index) == ("lab", True, "https://here")
    assert options == ["--no-browser", "--port", "8899"]
    assert make.parse(["notebooks", "02", "03"])[1] == ["02", "03"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["install"], "COMMAND must be one of help, lab, app, .*, not 'install'"),
        (["check", "--fast"], "check takes no arguments, but got --fast"),
        (["clean", "all"], "clean takes no arguments, but got all"),
        (["lab", "--torch-index"], "--torch-index: expected one argument"),
    ],
)
def test_other_arguments_are_named(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        make.parse(arguments)
    assert re.search(words, capsys.readouterr().err)


def test_without_a_command_it_lists_them_all(capsys):
    assert make.main([]) == 0
    shown = capsys.readouterr().out
    for name, command in make.COMMANDS.items():
        assert f"  {name}" in shown
        assert command.help in shown


@pytest.mark.parametrize("name", [name for name, c in make.COMMANDS.items() if c.extra])
def test_commands_run_modules_and_files_that_there_are(name):
    for module, *arguments in make.COMMANDS[name].modules([]):
        part = Path(*module.split("."))
        known = (ROOT / part).is_dir() or (ROOT / part).with_suffix(".py").exists()
        assert known or module in ("jupyterlab", "voila", "ruff", "mypy", "pytest", "pip")
        for argument in arguments:
            file = argument.partition("=")[2] or argument
            if "/" in file and "build" not in file:
                assert (ROOT / file).exists(), file


def test_check_leaves_out_what_is_slow_and_test_leaves_out_nothing():
    *lint, check = make.check([])
    *same, test = make.test([])
    assert same == lint
    assert check[check.index("-m") + 1] == "not slow"
    left_out = [a.partition("=")[2] for a in check if a.startswith("--ignore=")]
    assert left_out == ["tests/browser", "tests/speech", "tests/wheel"]
    assert [a for a in test if (ROOT / a).exists()] == ["notebooks", "tests"]
    assert not any(a.startswith(("-m", "-k", "--ignore", "--deselect")) for a in test)


# --- old Pythons, other systems ---------------------------------------------------------------


def test_an_old_python_reads_the_program_and_gets_a_sentence():
    source = (ROOT / "make.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    sentence = make.too_old((3, 9, 6))
    assert sentence.startswith("Python 3.11 or newer is needed, this is 3.9")
    assert make.too_old((3, 11, 0)) is None
    assert make.too_old((4, 0)) is None


def test_paths_on_windows_and_elsewhere():
    assert make.python_of(Path("v"), windows=True).parts == ("v", "Scripts", "python.exe")
    assert make.python_of(Path("v"), windows=False).parts == ("v", "bin", "python")


@pytest.mark.parametrize(
    ("version", "macos", "reason"),
    [
        ((3, 11), "", None),
        ((3, 14, 2), "", None),
        ((3, 15), "", "Python 3.15"),
        ((3, 12), "13.6.1", "macOS 13.6.1"),
        ((3, 12), "14.0", None),
        ((3, 12), "15", None),
    ],
)
def test_where_the_pins_serve(version, macos, reason):
    assert make.no_pins(version, macos) == reason


def test_where_there_is_no_pytorch():
    assert "Intel" in make.no_pytorch("darwin", "x86_64")
    for served in (("darwin", "arm64"), ("linux", "x86_64"), ("win32", "AMD64")):
        assert make.no_pytorch(*served) is None


# --- the environment --------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("index", ["", "https://elsewhere/cpu"])
def test_pip_understands_what_it_is_asked(ranges, index):
    lines = make.pip_lines(WANTED._replace(ranges=ranges, torch_index=index))
    assert len(lines) == 1 + bool(index)
    for pip, command, *arguments in lines:
        assert (pip, command) == ("pip", "install")
        options, rest = create_command("install").parse_args(arguments)
        assert ("constraints.txt" in options.constraints) is not ranges
        if options.editables:
            assert options.editables == [".[all]"]
            assert not rest
        else:  # the other build comes first, and from that address alone
            assert (rest, options.index_url) == (["torch", "torchvision"], index)
            assert options.ignore_dependencies
    assert "--editable" in lines[-1]


def test_what_makes_it_install_again(tmp_path):
    for name in ("pyproject.toml", "constraints.txt", "README.md"):
        (tmp_path / name).write_text("one")
    first = make.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("two")
    assert make.fingerprint(tmp_path) == first
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("two")
        assert make.fingerprint(tmp_path) != first
        (tmp_path / name).write_text("one")
    moved = tmp_path.with_name("moved")
    shutil.copytree(tmp_path, moved)
    assert make.fingerprint(moved) != first


def test_the_stamp(tmp_path):
    assert make.read_stamp(tmp_path) is None
    make.write_stamp(tmp_path, WANTED)
    assert make.read_stamp(tmp_path) == WANTED
    for broken in ("", "{", "[]", '{"requirements": "abc"}'):
        (tmp_path / ".installed").write_text(broken)
        assert make.read_stamp(tmp_path) is None


def test_the_extra_for_tests_takes_in_the_readers():
    assert make.is_current(WANTED, WANTED)
    assert make.is_current(WANTED._replace(extra="classroom"), WANTED)
    assert not make.is_current(WANTED, WANTED._replace(extra="classroom"))
    assert make.is_current(WANTED._replace(extra="test"), WANTED)
    assert not make.is_current(WANTED, WANTED._replace(extra="test"))
    assert not make.is_current(WANTED, WANTED._replace(requirements="other"))
    assert not make.is_current(None, WANTED)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A checkout on a machine whose programs only note that they were called."""
    machine = SimpleNamespace(calls=[], pip_fails=False, venv_fails=False, version=b"3 11")
    venv = tmp_path / ".venv"
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr(make, "VENV", venv)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("", ("", "", ""), ""))
    monkeypatch.setattr(sys, "platform", "linux")

    def call(line, **_):
        if line[1:3] == ["-m", "venv"]:
            machine.calls.append("venv")
            make.python_of(venv).parent.mkdir(parents=True)
            make.python_of(venv).touch()
            return int(machine.venv_fails)
        machine.calls.append(" ".join(line[2:]))
        return int(machine.pip_fails)

    def check_output(line, **_):
        if not Path(line[0]).exists():
            raise FileNotFoundError
        return machine.version

    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(subprocess, "check_output", check_output)

    def set_up(extra="all", ranges=False, torch_index="") -> list[str]:
        machine.calls.clear()
        make.set_up(extra, ranges, torch_index)
        return [re.sub(r"install.*--editable \.", "", call) for call in machine.calls]

    machine.set_up, machine.venv, machine.root = set_up, venv, tmp_path
    return machine


def test_it_is_set_up_once_and_again_only_when_the_requirements_change(machine):
    assert machine.set_up() == ["venv", "pip [all]"]
    assert machine.set_up() == []
    assert machine.set_up("test") == ["pip [test]"]
    assert machine.set_up("test") == machine.set_up("all") == []
    with (machine.root / "constraints.txt").open("a") as file:
        file.write("# new\n")
    assert machine.set_up() == ["pip [all]"]
    assert machine.set_up("test") == ["pip [test]"]


def test_what_failed_is_tried_again(machine):
    machine.pip_fails = True
    with pytest.raises(SystemExit, match=r"pip could not install .* With --ranges it may"):
        machine.set_up()
    assert make.read_stamp(machine.venv) is None
    machine.pip_fails = False
    assert machine.set_up() == ["pip [all]"]


def test_what_was_interrupted_is_installed_again_though_the_requirements_are_the_old_ones(machine):
    machine.set_up(torch_index="https://cpu")
    constraints = machine.root / "constraints.txt"
    before = constraints.read_text()
    constraints.write_text(before + "# new\n")
    machine.pip_fails = True
    with pytest.raises(SystemExit):
        machine.set_up()
    constraints.write_text(before)
    machine.pip_fails = False
    assert machine.set_up()[-1] == "pip [all]"
    assert "--index-url https://cpu" in machine.calls[0], "what was chosen once holds"
    assert machine.set_up() == []


def test_a_half_made_environment_is_removed(machine):
    machine.venv_fails = True
    with pytest.raises(SystemExit, match="The environment could not be made"):
        machine.set_up()
    assert not machine.venv.exists()


def test_an_environment_whose_python_is_gone_is_made_anew(machine):
    machine.set_up()
    make.python_of(machine.venv).unlink()
    with (machine.root / "pyproject.toml").open("a") as file:
        file.write("# new\n")
    assert machine.set_up() == ["venv", "pip [all]"]


def test_where_the_pins_do_not_serve_it_takes_the_ranges_and_says_so(machine, capsys):
    machine.version = b"3 15"
    machine.set_up()
    assert "--constraint" not in machine.calls[-1]
    assert "pinned versions do not serve Python 3.15" in capsys.readouterr().out
    assert machine.set_up() == []
    assert "--constraint" not in machine.calls


def test_another_build_of_pytorch_is_kept_to(machine):
    machine.set_up()
    assert len(machine.set_up(torch_index="https://cpu")) == 3, "venv, torch, the rest"
    assert machine.set_up() == []
    machine.set_up("test")
    assert "--index-url https://cpu torch torchvision" in machine.calls[0]
    assert machine.set_up("test", torch_index="https://cpu") == []


def test_where_there_is_a_wheelhouse_nothing_else_is_asked(machine, capsys):
    machine.set_up()
    assert "--no-index" not in machine.calls[-1]
    wheels = machine.root / make.WHEELS
    wheels.mkdir()
    make.remove(machine.venv)
    machine.set_up()
    assert "--no-index" not in machine.calls[-1], "an empty folder is none"
    (wheels / "torch-1-py3-none-any.whl").touch()
    make.remove(machine.venv)
    machine.set_up(torch_index="https://cpu")
    assert machine.calls[0] == "venv"
    assert len(machine.calls) == 2, "no line for PyTorch alone"
    assert f"--no-index --find-links {make.WHEELS} --editable .[all]" in machine.calls[-1]
    assert f"installs from {make.WHEELS}/" in capsys.readouterr().out
    machine.pip_fails = True
    with pytest.raises(SystemExit, match=r"It looked in wheelhouse/ alone"):
        machine.set_up("test")


def test_the_wheelhouse_is_filled_with_what_was_chosen(machine):
    (line,) = make.wheelhouse([])
    assert line[-2:] == ["setuptools>=77", ".[all]"]
    assert "--constraint" in line
    machine.set_up(ranges=True, torch_index="https://cpu")
    torch, rest = make.wheelhouse([])
    assert torch[-4:] == ["--index-url", "https://cpu", "torch", "torchvision"]
    assert "--constraint" not in rest
    assert rest[-2:] == ["--find-links", make.WHEELS]
    for line in (torch, rest):
        create_command("wheel").parse_args(line[2:])


def test_an_old_python_makes_nothing(machine, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    with pytest.raises(SystemExit, match=r"Python 3.11 or newer is needed"):
        machine.set_up()
    assert machine.calls == []


def test_ctrl_c_is_for_what_it_runs(monkeypatch):
    def call(*_, **__):
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    before = signal.getsignal(signal.SIGINT)
    assert make.run(Path("python"), [["a"], ["b"]]) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_failure_ends_a_command(monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "call", lambda line, **_: ran.append(line[2]) or 3)
    assert make.run(Path("python"), [["a"], ["b"]]) == 3
    assert ran == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="links want a privilege there")
def test_clean_takes_what_can_be_made_again_and_nothing_else(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "root"
    for folder in (elsewhere, root / "build", root / "a" / "__pycache__", root / "a.egg-info"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (root / "a" / "kept.py").touch()
    (root / ".venv").symlink_to(elsewhere)
    make.clean(root)
    assert [str(p.relative_to(root)) for p in sorted(root.rglob("*"))] == ["a", "a/kept.py"]
    assert (elsewhere / "file").exists()


@pytest.mark.parametrize(
    "name", ["key.txt", "course/submitted/anna/02/02.ipynb", "course/gradebook.db"]
)
def test_clean_leaves_what_students_handed_in_their_marks_and_the_key(tmp_path, capsys, name):
    handed_in = tmp_path / "build" / "classroom" / name
    handed_in.parent.mkdir(parents=True)
    handed_in.touch()
    (tmp_path / "build" / "slides.html").touch()
    make.clean(tmp_path)
    assert handed_in.exists()
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["classroom"]
    assert "build/classroom stays" in Path(capsys.readouterr().out).as_posix()


# --- make -------------------------------------------------------------------------------------


def made(*arguments: str) -> list[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # As from a shell: when make called it, make speaks of its folders and takes variables over.
    ours = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", *ours))}
    done = subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize("name", make.COMMANDS)
def test_make_has_the_same_commands(name):
    assert made(name, "PYTHON=py") == ["py", "make.py", name]


def test_make_hands_its_variables_on():
    assert made("lab", "LAB_OPTIONS=--no-browser --port=1")[2:] == [
        "lab",
        "--no-browser",
        "--port=1",
    ]
    assert made("app", "APP_OPTIONS=--port=1")[2:] == ["app", "--port=1"]
    assert made("notebooks", "ONLY=02 03")[2:] == ["notebooks", "02", "03"]
    assert made("check", "ONLY=02", "RANGES=1")[2:] == ["check", "--ranges"]
    assert made("lab", "TORCH_INDEX=https://a")[2:] == ["lab", "--torch-index=https://a"]
    assert made()[2:] == ["help"]
