"""Measure what measuring F costs in memory, beside training.

    python -m benchmarks.bench_measuring [--tokens 16] [--quick]

GPT-2 with 124 million random weights and two sequences, from which ``consolidate`` estimates F with
sampled labels, into a compact state, in one pass or in groups of parameters. Above weights and
state, in bytes per weight, is given by how much the process's memory rises at its peak; for
comparison that of training with Adam rises above the weights, its gradients and moments included.

Each row comes from a process of its own and is appended to ``measuring.csv`` in
``benchmarks/results/``; those that are there are not measured again. ``measuring.md`` is made of
all. ``--quick`` takes two layers, and prints only. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.timing import memory, start_peak_anew
from experiments import stored_rows

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "measuring.csv"
TRAINING = "training with Adam"
GROUPS = {"consolidate": 1, "consolidate(groups=8)": 8}
COLUMNS = ["what", "tokens", "peak", "seconds", "torch"]


def measure(what: str, layers: int, tokens: int) -> dict[str, Any]:
    """Return one row."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from ewc_tutorial import EWC
    from ewc_tutorial.huggingface import consolidate

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers))
    weights = sum(p.numel() for p in model.parameters())
    ids = torch.randint(model.config.vocab_size, (2, tokens))
    texts = [{"input_ids": row} for row in ids]
    ewc = EWC(model, rule="latest", curvature="compact")
    # Touch the state: pages that nobody has written to are not counted.
    for buffer in ewc.buffers():
        buffer.fill_(0)
    gc.collect()
    start_peak_anew()
    before, start = memory("VmRSS"), time.perf_counter()
    if what == TRAINING:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        for _ in range(2):
            optimizer.zero_grad()
            model(input_ids=ids[:1], labels=ids[:1]).loss.backward()
            optimizer.step()
    else:
        consolidate(ewc, texts, batch_size=1, groups=GROUPS[what])
    return {
        "what": what,
        "tokens": tokens,
        "peak": float(f"{(memory('VmHWM') - before) / weights:.4g}"),
        "seconds": float(f"{time.perf_counter() - start:.3g}"),
        "torch": torch.__version__,
    }


def markdown(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    lines = [
        "# What measuring F costs in memory",
        "",
        "By how much the memory of a process rises at its peak, above a GPT-2 of 124 million "
        f"random weights and a compact state, in bytes per weight; sequences of {first.tokens} "
        f"tokens, sampled labels, one thread. {platform.machine()} CPU, PyTorch {first.torch}. A "
        "group has one tensor at least, and of this model the embedding alone has a third of the "
        "weights. "
        "`python -m benchmarks.bench_measuring` makes this file.",
        "",
        "| | peak |",
        "| --- | ---: |",
        *(f"| {row.what} | +{row.peak:.1f} |" for row in rows.itertuples()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="two layers, and nothing is written")
    arguments = parser.parse_args()
    done = set(pd.read_csv(TABLE).what) if TABLE.exists() and not arguments.quick else set()
    for what in (TRAINING, *GROUPS):
        if what in done:
            continue
        # Another process for each, so that none starts with memory that another has left behind.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            layers = 2 if arguments.quick else 12
            row = pool.submit(measure, what, layers, arguments.tokens).result()
        print(row, f"{os.getloadavg()[0]:.0f} busy", flush=True)
        if not arguments.quick:
            stored_rows.append(TABLE, [row], COLUMNS)
    if not arguments.quick:
        (RESULTS / "measuring.md").write_text(markdown(pd.read_csv(TABLE)))


if __name__ == "__main__":
    main()
