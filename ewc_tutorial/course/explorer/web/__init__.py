"""The lab's page without a kernel: its JavaScript, its style and its frame.

A few hundred lines of typed arrays train the course's network. A step on 32 digits takes 0.43 ms
of a core; TensorFlow.js 4.22 took 1.8 ms (wasm) and 3.2 ms (cpu), most of it for the bookkeeping of
each operation, and would make the page 2 MB larger.
"""

from __future__ import annotations

from importlib.resources import files

#: What trains a network, in the order in which the parts need each other.
ENGINE = ("random", "tasks", "matrix", "network", "curvature", "attachment", "learner")
#: What shows it.
PAGE = ("pool", "words", "results", "charts", "views", "page")


def read(name: str) -> str:
    """Return one of the files of this folder."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def engine() -> str:
    """Return the scripts that train a network; they need no page."""
    return "\n".join(read(f"{name}.js") for name in ENGINE)


def page() -> str:
    """Return the scripts of the page itself, beside the engine."""
    return "\n".join(read(f"{name}.js") for name in PAGE)
