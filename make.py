#!/usr/bin/env python3
"""The commands of the course on every system: ``python3 make.py lab``, on Windows ``py``.

Everything runs in .venv, which is made on first use and brought up to date when the requirements
change. This file needs nothing but Python, and it is written in the syntax of Python 3.6, so that
an old Python can read it as far as the sentence that says which one is needed.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("EWC_TUTORIAL_VENV") or ROOT / ".venv")  # the Dockerfile sets it
OLDEST = (3, 11)
#: The newest Python and the oldest macOS that there are wheels of the pinned PyTorch for.
PINS_NEWEST = (3, 14)
PINS_MACOS = (14,)

#: Wheels for rooms without a network: where this folder is, nothing else is asked.
WHEELS = "wheelhouse"

FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"
LAB_PAGE = "notebooks/app/lambda_lab.ipynb"
#: Of build/classroom: the key of the hidden tests, what was handed in, and its marks.
NOT_MADE_AGAIN = ("key.txt", "course/submitted", "course/gradebook.db")
LINT: List[List[str]] = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
#: Folders of tests that take longer than a look at a change should.
SLOW_TESTS = ("browser", "speech", "wheel")
# A cell of a lesson takes at most about 15 s; slow machines get some slack.
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")
# A notebook has one kernel and a file's tests share servers: each stays with one process. They come
# in the order of their names: with most tests first, few that take minutes would be the last.
TWO_AT_ONCE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")

Line = List[str]


class Command(NamedTuple):
    """A command: what it says of itself, the extra that it needs ("" for none), and the modules
    that it runs, each with its arguments, given the arguments of the command itself."""

    help: str
    extra: str
    modules: Callable[[Line], List[Line]]
    takes: str = ""


def lab(options: Line) -> List[Line]:
    # The repository is the server's root: lessons link to the README, to data/ and to tests.
    return [["jupyterlab", "--ServerApp.root_dir=" + str(ROOT), FIRST_NOTEBOOK, *options]]


def app(options: Line) -> List[Line]:
    # Its voila.json cures three things. A page says goodbye to its kernel without the token that
    # Jupyter wants (voila#1458), and each visit left 0.6 GB behind; browsers that died say no
    # goodbye, so idle kernels are culled; and the page waited for style sheets from outside for as
    # long as the network was silent.
    settings = "--Voila.config_file_paths=" + os.path.dirname(LAB_PAGE)
    return [["voila", LAB_PAGE, settings, *options]]


def check(_: Line) -> List[Line]:
    left_out = ["--ignore=tests/" + folder for folder in SLOW_TESTS]
    return [*LINT, ["pytest", "-n", "2", "-m", "not slow", "tests", *left_out]]


def test(_: Line) -> List[Line]:
    # All in one run: each of the two processes takes half a minute to read the tests.
    return [*LINT, ["pytest", *TWO_AT_ONCE, *NBVAL, "notebooks", "tests"]]


def wheelhouse(_: Line) -> List[Line]:
    wheel = ["pip", "wheel", "--disable-pip-version-check", "--wheel-dir", WHEELS]
    installed = read_stamp(VENV)
    if not (installed and installed.ranges):
        wheel += ["--constraint", "constraints.txt"]
    lines = [[*wheel, "setuptools>=77", ".[all]"]]
    if installed and installed.torch_index:
        build = ["--no-deps", "--index-url", installed.torch_index, "torch", "torchvision"]
        lines = [[*wheel, *build], [*lines[0], "--find-links", WHEELS]]
    return lines


def nothing(_: Line) -> List[Line]:
    return []


def module(*line: str) -> Callable[[Line], List[Line]]:
    return lambda options: [list(line) + options]


COMMANDS: Dict[str, Command] = {
    "help": Command("Show this list", "", nothing),
    "lab": Command(
        "Set up and open JupyterLab on the first notebook", "all", lab, "options of JupyterLab"
    ),
    "app": Command(
        "Show the λ lab alone as a web page, for a classroom screen", "all", app, "options of Voilà"
    ),
    "lab-html": Command(
        "Write build/lambda_lab.html, which trains in a browser: no kernel, no network",
        "all",
        module("ewc_tutorial.course.explorer.page", "build/lambda_lab.html"),
    ),
    "site": Command(
        "Write build/site, the course as web pages: no server, no network",
        "site",
        module("docs.site.build", "build/site"),
    ),
    "test": Command("Set up and run every test, notebooks included", "test", test),
    "check": Command("Lint and unit tests alone", "test", check),
    "notebooks": Command(
        "Execute the notebooks in place and refresh their times",
        "test",
        module("ewc_tutorial.course.publish"),
        'numbers, "02 03" for some',
    ),
    "bench-fisher": Command(
        "Measure the Fisher engine beside the alternatives",
        "test",
        lambda options: [
            [f"benchmarks.{name}"]
            for name in ("bench_fisher", "bench_fisher_sizes", "bench_factors")
        ],
    ),
    "bench-step": Command(
        "Measure a training step with EWC beside a plain one",
        "test",
        module("benchmarks.bench_step"),
    ),
    "bench-sweep": Command(
        "Measure a sweep over λ beside a single run", "test", module("benchmarks.bench_sweep")
    ),
    "speech": Command(
        "Start the speech-corrections service of notebook 10", "all", module("ewc_tutorial.speech")
    ),
    "classroom": Command(
        "Write build/classroom: lessons without answers, and a course for nbgrader",
        "classroom",
        module("ewc_tutorial.course.classroom"),
        'numbers, "02 03" for some',
    ),
    "slides": Command(
        "Write build/slides.html, the slides of a lecture of 90 minutes",
        "slides",
        module("ewc_tutorial.course.slides", "build/slides.html"),
    ),
    "wheelhouse": Command(
        "Fill wheelhouse/ with what `lab` installs, for machines without a network",
        "all",
        wheelhouse,
    ),
    "clean": Command("Remove the environment and everything that can be made again", "", nothing),
}


class Environment(NamedTuple):
    """What .venv holds, or is to hold; kept in .venv/.installed."""

    requirements: str
    extra: str
    ranges: bool
    torch_index: str


# --- arguments --------------------------------------------------------------------------------


def parse(arguments: Line) -> Tuple[argparse.Namespace, Line]:
    """Return our own arguments and those that the command takes.

    Raises:
        SystemExit: the command is none of ours, or takes no arguments.
    """
    listed = "\n".join(
        f"  {name:13s} {c.help}" + (f" ({c.takes})" if c.takes else "")
        for name, c in COMMANDS.items()
    )
    parser = argparse.ArgumentParser(
        prog="make.py",
        usage="%(prog)s COMMAND [options]",
        description="Commands:\n" + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", default="help", help=argparse.SUPPRESS)
    parser.add_argument(
        "--torch-index",
        default="",
        metavar="ADDRESS",
        help="take PyTorch from here, where pytorch.org offers it for the CPU alone",
    )
    parser.add_argument(
        "--ranges",
        action="store_true",
        help="install what pyproject.toml admits rather than what constraints.txt pins",
    )
    ours, options = parser.parse_known_args(arguments)
    command = COMMANDS.get(ours.command)
    if command is None:
        parser.error(f"COMMAND must be one of {', '.join(COMMANDS)}, not {ours.command!r}.")
    if options and not command.takes:
        parser.error(f"{ours.command} takes no arguments, but got {' '.join(options)}.")
    if ours.command == "help":
        parser.print_help()
    return ours, options


# --- the environment --------------------------------------------------------------------------


def python_of(venv: Path, windows: bool = os.name == "nt") -> Path:
    """Return where the Python of an environment lies."""
    return venv / "Scripts" / "python.exe" if windows else venv / "bin" / "python"


def fingerprint(root: Path) -> str:
    """Return a hash of what is to be installed, and where from: a moved folder is set up again."""
    found = hashlib.sha256(str(root).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        found.update((root / name).read_bytes())
    return found.hexdigest()


def read_stamp(venv: Path) -> Optional[Environment]:
    """Return what an environment holds, or None if it was never finished."""
    try:
        return Environment(**json.loads((venv / ".installed").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_stamp(venv: Path, installed: Environment) -> None:
    (venv / ".installed").write_text(json.dumps(installed._asdict()))


def is_current(installed: Optional[Environment], wanted: Environment) -> bool:
    """Tell whether nothing needs to be installed: `test` takes in every other extra."""
    wider = {"all": ("classroom", "slides", "test")}.get(wanted.extra, ("test",))
    return installed in (wanted, *(wanted._replace(extra=extra) for extra in wider))


def too_old(version: Tuple[int, ...]) -> Optional[str]:
    """Return a sentence if a Python cannot run the course."""
    if version[:2] >= OLDEST:
        return None
    shown = ".".join(map(str, version[:2]))
    return (
        f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {shown}: run "
        "path/to/newer/python make.py, or make PYTHON=path/to/newer/python."
    )


def no_pytorch(system: str, machine: str) -> Optional[str]:
    """Return a sentence if there is no PyTorch for a machine."""
    if (system, machine) != ("darwin", "x86_64"):
        return None
    return (
        "There is no PyTorch 2.6 or newer for Macs with an Intel processor: use another machine, "
        "or Colab (README). On a Mac with an Apple processor, take a Python that is built for it."
    )


def no_pins(version: Tuple[int, ...], macos: str) -> Optional[str]:
    """Return why the versions in constraints.txt cannot be installed, or None if they can.

    Args:
        version: of Python.
        macos: version of macOS, "" on other systems.
    """
    if version[:2] > PINS_NEWEST:
        return "Python " + ".".join(map(str, version[:2]))
    if macos and tuple(map(int, macos.split(".")))[:1] < PINS_MACOS:
        return "macOS " + macos
    return None


def pip_lines(wanted: Environment) -> List[Line]:
    """Return what pip is asked for, in this order."""
    pip = ["pip", "install", "--quiet", "--disable-pip-version-check"]
    if not wanted.ranges:
        pip += ["--constraint", "constraints.txt"]
    offline = has_wheels(ROOT)
    if offline:
        pip += ["--no-index", "--find-links", WHEELS]
    lines = [[*pip, "--editable", f".[{wanted.extra}]"]]
    if wanted.torch_index and not offline:
        # From there alone, so that no larger build can take its place; the rest from anywhere.
        build = ["--no-deps", "--index-url", wanted.torch_index]
        lines.insert(0, [*pip, *build, "torch", "torchvision"])
    return lines


def has_wheels(root: Path) -> bool:
    """Tell whether there is a wheelhouse to install from."""
    return any((root / WHEELS).glob("*.whl"))


def version_of(python: Path) -> Optional[Tuple[int, ...]]:
    """Return the version of an environment's Python, or None if it or its pip does not run."""
    ask = "import pip, sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.check_output([str(python), "-c", ask], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(map(int, answer.split()))


def set_up(extra: str, ranges: bool, torch_index: str) -> None:
    """Make .venv hold an extra of the package, if it does not yet.

    Raises:
        SystemExit: this machine cannot run the course, or pip failed.
    """
    installed = read_stamp(VENV)
    anew = bool(installed and torch_index and torch_index != installed.torch_index)
    if installed:  # what was chosen once holds until `clean`
        ranges, torch_index = ranges or installed.ranges, torch_index or installed.torch_index
    wanted = Environment(fingerprint(ROOT), extra, ranges, torch_index)
    if is_current(installed, wanted):
        return
    python = python_of(VENV)
    version = version_of(python)
    if version is None or anew:
        refusal = too_old(sys.version_info) or no_pytorch(sys.platform, platform.machine())
        if refusal:
            raise SystemExit(refusal)
    source = f"installs from {WHEELS}/" if has_wheels(ROOT) else "downloads PyTorch"
    print(f"Setting up {VENV.name}. The first time this {source} and takes some minutes.")
    if version is None or anew:
        remove(VENV)
        base = getattr(sys, "_base_executable", sys.executable)
        if subprocess.call([base, "-m", "venv", str(VENV)]):
            remove(VENV)
            raise SystemExit("The environment could not be made; Python's message is above.")
        version = version_of(python) or sys.version_info[:2]
    reason = no_pins(version, platform.mac_ver()[0])
    if reason and not ranges:
        print(
            f"The pinned versions do not serve {reason}: taking what pyproject.toml admits. "
            "Numbers may differ in their last digits."
        )
        wanted = wanted._replace(ranges=True)
    if installed:  # until pip is done this is no finished environment, but the choices hold
        write_stamp(VENV, wanted._replace(requirements=""))
    if run(python, pip_lines(wanted)):
        advice = "" if wanted.ranges else " With --ranges it may take other versions."
        if has_wheels(ROOT):
            advice = (
                f" It looked in {WHEELS}/ alone, whose wheels serve the system and the Python that "
                "filled it. Without that folder it takes them from the network."
            )
        raise SystemExit("pip could not install the course; its message is above." + advice)
    write_stamp(VENV, wanted)


# --- what is run ------------------------------------------------------------------------------


def run(python: Path, lines: List[Line]) -> int:
    """Run modules one after the other, up to the first that fails, and return its exit status.

    Ctrl-C is for the module: JupyterLab asks a question then, and pytest sums up.
    """
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        for line in lines:
            # Files of the course are in UTF-8, whatever the language of the system.
            environment = dict(os.environ, PYTHONUTF8="1")
            status = subprocess.call([str(python), "-m", *line], cwd=str(ROOT), env=environment)
            if status:
                return status
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.exists() or path.is_symlink():
        path.unlink()


def clean(root: Path) -> None:
    classroom = root / "build" / "classroom"
    kept = any((classroom / name).exists() for name in NOT_MADE_AGAIN)
    made = [".venv", "dist", "*.egg-info", ".pytest_cache", ".ruff_cache", ".hypothesis"]
    for pattern in [*made, "build/*" if kept else "build", "tests/artifacts"]:
        for path in root.glob(pattern):
            if not kept or path != classroom:
                remove(path)
    if kept:
        print(f"{classroom} stays, for it has a course's key, submissions or marks.")
    for pattern in ("__pycache__", ".ipynb_checkpoints"):
        for path in list(root.rglob(pattern)):
            remove(path)


def main(arguments: Line) -> int:
    if hasattr(sys.stdout, "reconfigure"):  # a console that has no λ shows a question mark
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    ours, options = parse(arguments)
    if ours.command == "clean":
        clean(ROOT)
    command = COMMANDS[ours.command]
    if not command.extra:
        return 0
    set_up(command.extra, ours.ranges, ours.torch_index)
    return run(python_of(VENV), command.modules(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
