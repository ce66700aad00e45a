"""Proof that the tests of the answer key hold it: each small change of it must fail one of them.

    python tests/mutation.py [FUNCTION …]

makes every mutant of the functions of :mod:`ewc_tutorial.course.reference` that ``mutants.py``
knows (another constant, operator, argument, index, function or bound; a term, a statement or a
sample less), runs the tests of ``test_reference_*.py`` that call the function and lists the mutants
that all of them let pass. It ends with an error if there are any. The tests of the exercises do
not count: they compare the answer with itself. A run takes some minutes; pytest does not collect
this file and ``make test`` does not run it.

A mutant is named by its function and the statement before and after; (2) is the second that reads
the same. ``mutation.txt`` lists those that no test can fail because no value changes, below the
reason.
"""

from __future__ import annotations

import ast
import gc
import inspect
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from mutants import mutants

from ewc_tutorial.course import reference

EQUIVALENT = Path(__file__).with_suffix(".txt")
LIMIT = 60  # processor seconds per mutant: one that does not end has failed
JOBS = 2
TESTS = sorted(map(str, (Path(__file__).parent / "course").glob("test_reference_*.py")))

TEXTBOOK = {
    name: function
    for name, function in vars(reference).items()
    if inspect.isfunction(function) and function.__module__ == reference.__name__
}
Test = Callable[[], None]


class Collected:
    """A pytest plugin that keeps the tests, which take parameters but no fixtures."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tests = [
            partial(item.obj, **(item.callspec.params if hasattr(item, "callspec") else {}))
            for item in session.items
        ]


def tests_by_function() -> dict[str, list[Test]]:
    """Run all tests once and return those that call each function, the fastest first."""
    collected = Collected()
    pytest.main(["-qq", "--collect-only", "-p", "no:cacheprovider", *TESTS], plugins=[collected])
    names = {function.__code__: name for name, function in TEXTBOOK.items()}
    timed = defaultdict(list)
    for number, test in enumerate(collected.tests):
        test()  # what it imports is then there
        called: set[str | None] = set()
        began = time.perf_counter()
        sys.setprofile(lambda frame, *_: called.add(names.get(frame.f_code)))  # noqa: B023
        test()
        sys.setprofile(None)
        for name in called - {None}:
            timed[name].append((time.perf_counter() - began, number))
    return {name: [collected.tests[n] for _, n in sorted(rows)] for name, rows in timed.items()}


def replace(name: str, tree: ast.FunctionDef) -> None:
    """Give a function another body, for everybody who has imported it."""
    module = ast.fix_missing_locations(ast.Module([tree], []))
    namespace = dict(vars(reference))
    exec(compile(module, "mutant", "exec", annotations.compiler_flag, True), namespace)
    TEXTBOOK[name].__code__ = namespace[name].__code__
    TEXTBOOK[name].__defaults__ = namespace[name].__defaults__


def start(name: str, tree: ast.FunctionDef, tests: list[Test]) -> int:
    """Run the tests against a mutant in a process of its own, which ends with 0 if they pass."""
    pid = os.fork()
    if pid:
        return pid
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    survived = False
    try:
        replace(name, tree)
        for test in tests:
            test()
        survived = True
    finally:
        os._exit(0 if survived else 1)


def main(names: list[str]) -> int:
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutation")
    tests = tests_by_function()
    gc.freeze()
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines()
    known = {row for row in lines if row.partition(":")[0] in (names or TEXTBOOK)}
    survivors: set[str] = set()
    running: dict[int, str] = {}

    def wait() -> None:
        pid, status = os.wait()
        mutant = running.pop(pid)
        if status == 0:
            survivors.add(mutant)
            if mutant not in known:
                print("SURVIVOR", mutant, flush=True)

    total = 0
    for name in names or TEXTBOOK:
        tree = ast.parse(inspect.getsource(TEXTBOOK[name])).body[0]
        if name not in tests or os.waitpid(start(name, tree, tests[name]), 0)[1] != 0:
            print(f"{name}: no test calls it, or one fails as it is")
            return 1
        began = time.perf_counter()
        before = total
        for mutant in mutants(tree):
            while len(running) >= JOBS:
                wait()
            running[start(name, tree, tests[name])] = mutant
            total += 1
        while running:
            wait()
        print(f"{name}: {total - before} mutants, {time.perf_counter() - began:.0f} s", flush=True)
    for mutant in sorted(known - survivors):
        print("NO SURVIVOR ANY MORE", mutant)
    print(f"{total} mutants, {len(survivors)} survive, {len(known)} of these change no value")
    return int(survivors != known)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
