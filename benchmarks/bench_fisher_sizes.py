"""Measure how the Fisher engine's time grows with samples, classes and positions, beside others.

    python -m benchmarks.bench_fisher_sizes [--rounds 5] [--quick]

One size is varied at a time: samples from 500 to 60,000 and classes from 10 to 1,000 with an MLP on
784 inputs, positions of a convolution from 1 to 256 with 100 classes. Time is a multiple of one
plain forward and backward pass over the same data, as in ``bench_fisher``; so are the methods, of
which those of other packages are measured where they are installed. A method that has taken more
than a minute for one run is not tried at larger sizes.

Writes ``fisher_sizes.csv`` and ``fisher_sizes.md`` into ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks import fisher_rivals as rivals
from benchmarks.bench_fisher import ENGINE, PLAIN, RESULTS, Entry, entries
from benchmarks.timing import paired
from ewc_tutorial.course.models import mlp

#: Seconds of one run beyond which a method is not tried at the next size.
PATIENCE, QUICK_PATIENCE = 60.0, 1.0


@dataclass(frozen=True)
class Size:
    """A model with its data, at one point of a series."""

    series: str
    size: int
    model: nn.Module
    x: Tensor
    y: Tensor


def dense(series: str, size: int, n: int, classes: int) -> Size:
    return Size(series, size, mlp(784, [400], classes), torch.randn(n, 784), _labels(n, classes))


def convolution(positions: int, n: int) -> Size:
    side = math.isqrt(positions)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 100),
    )
    return Size("positions", positions, model, torch.randn(n, 3, side, side), _labels(n, 100))


def _labels(n: int, classes: int) -> Tensor:
    return torch.randint(classes, (n,))


def sizes(quick: bool) -> list[Size]:
    torch.manual_seed(0)
    share = 16 if quick else 1
    return [
        *(dense("samples", n, n, 10) for n in (500, 2000, 10_000, 60_000 // share)),
        *(dense("classes", classes, 512 // share, classes) for classes in (10, 100, 1000)),
        *(convolution(positions, 64 // share) for positions in (1, 4, 16, 64, 256)),
    ]


def measure(at: Size, rounds: int, patience: float, given_up: set[str]) -> list[dict[str, object]]:
    """Return a row for each method, and add to ``given_up`` those that take too long."""
    rows = []
    for entry in entries():
        label = f"{at.series}|{entry.name}|{entry.estimator}"
        if entry.name == PLAIN or label in given_up:
            continue
        n = min(entry.n or len(at.x), len(at.x))
        run = partial(entry.method, at.model, at.x[:n], at.y[:n])
        start = time.perf_counter()
        try:
            run()
        except Exception as error:  # another package's limits are a result, too
            print(f"  {label} cannot do it: {str(error).splitlines()[0][:90]}")
            given_up.add(label)
            continue
        if (seconds := time.perf_counter() - start) > patience:
            given_up.add(label)
        plain = partial(rivals.plain_pass, at.model, at.x[:n], at.y[:n])
        found = paired({label: (run, plain)}, rounds if seconds < patience / 10 else 1)[label]
        rows.append(_row(at, entry, n, found.multiple(), found.median()))
        print(f"  {entry.name:22} {entry.estimator:10} {found.multiple():9.2f}×", flush=True)
    return rows


def _row(at: Size, entry: Entry, n: int, multiple: float, seconds: float) -> dict[str, object]:
    return {
        "series": at.series,
        "size": at.size,
        "method": entry.name,
        "estimator": entry.estimator,
        "n": n,
        "multiple": multiple,
        "ms_per_1000": 1e6 * seconds / n,
    }


def markdown(table: pd.DataFrame) -> str:
    lines = [
        "# The diagonal Fisher information at many sizes",
        "",
        "Time as a multiple of a plain forward and backward pass over the same data (batch 128). "
        "A missing number: not tried, since a smaller size took over a minute, or not possible. "
        f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()} CPU. `python -m benchmarks.bench_fisher_sizes` makes this file.",
    ]
    for series, rows in table.groupby("series", sort=False):
        columns = list(rows["size"].unique())
        lines += ["", f"## {str(series).capitalize()}", ""]
        lines.append(f"| method | estimator | {' | '.join(f'{c:,}' for c in columns)} |")
        lines.append(f"| --- | --- |{' ---: |' * len(columns)}")
        for (method, estimator), some in rows.groupby(["method", "estimator"], sort=False):
            found = dict(zip(some["size"], some["multiple"], strict=True))
            cells = [f"{found[c]:.1f}×" if c in found else "" for c in columns]
            name = f"**{method}**" if method == ENGINE else method
            lines.append(f"| {name} | {estimator} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the data, to try it")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    patience = QUICK_PATIENCE if arguments.quick else PATIENCE
    rows, given_up = [], set()
    for at in sizes(arguments.quick):
        print(f"{at.series} {at.size:,}", flush=True)
        rows += measure(at, arguments.rounds, patience, given_up)
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "fisher_sizes.csv", index=False, float_format="%.4g")
    (RESULTS / "fisher_sizes.md").write_text(markdown(table))
    print(f"Written to {RESULTS}/fisher_sizes.csv and .md")


if __name__ == "__main__":
    main()
