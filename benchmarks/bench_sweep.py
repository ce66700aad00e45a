"""How the time of a sweep over λ grows with the number of networks, as a multiple of one run.

    python -m benchmarks.bench_sweep                  # on the CPU, with one thread and with two
    python -m benchmarks.bench_sweep --device cuda --members 1 16 64 256 1024

The digits network 64-64-64-10 learns two permuted tasks. Every round measures one run of ``learn``
right before the sweep of each size, so that what slows the machine slows both; reported are medians
over the rounds. The claim to check: 16 λ in at most 3 times the time of one run, 32 in at most 5.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import paired
from ewc_tutorial import EWC
from ewc_tutorial.course import learn, mlp, permuted_tasks
from ewc_tutorial.course.sweep import lambda_sweep

RESULTS = Path(__file__).resolve().parent / "results" / "sweep.csv"
HIDDEN = (64, 64)
LIMITS = {16: 3.0, 32: 5.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    threads = options.threads if options.device == "cpu" else [1]
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        rows += measure(options, count)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {RESULTS}")


def measure(options: argparse.Namespace, threads: int) -> list[dict]:
    """Return a row per number of members, and print it."""
    tasks = [task.to(options.device) for task in permuted_tasks(2)]
    budget = {"lr": 0.1, "epochs": options.epochs}

    def one_run() -> None:
        model = mlp(64, HIDDEN, 10, seed=0).to(options.device)
        learn(model, tasks, EWC(model, 10.0), evaluations=10, **budget)

    def sweep(members: int) -> None:
        lambdas = [0.0, *np.logspace(-2, 6, members - 1)]
        lambda_sweep(tasks, lambdas, hidden=HIDDEN, device=options.device, progress=False, **budget)

    seconds = paired({m: (partial(sweep, m), one_run) for m in options.members}, options.rounds)
    base = statistics.median(s for each in seconds.values() for s in each.of_unit)
    print(f"{options.device}, {threads} thread(s), one run of `learn`: {base:.2f} s")
    rows = []
    for members in options.members:
        ratio = seconds[members].multiple()
        limit = LIMITS.get(members) if options.device == "cpu" else None
        verdict = "" if limit is None else f"  (at most {limit:g}: {ratio <= limit})"
        print(f"  {members:5} λ: {ratio:5.2f} times one run{verdict}")
        rows.append(
            {
                "device": options.device,
                "threads": threads,
                "members": members,
                "seconds": round(seconds[members].median(), 3),
                "one_run_seconds": round(base, 3),
                "ratio": round(ratio, 2),
                "rounds": options.rounds,
            }
        )
    return rows


if __name__ == "__main__":
    main()
