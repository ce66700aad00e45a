"""Measure what remembering costs: bytes per weight, and the time and memory of a training step.

    python -m benchmarks.bench_state [--rounds 5] [--device cpu] [--only NAME …] [--quick]

GPT-2 with 124 million random weights and one sequence of 64 tokens per step, and the 784-400-400-10
network with batches of 128, both with Adam. The states are that of the full diagonal (S and μ in
float32), of the compact one (S in one byte, μ in float16), and of the compact one with its anchor
in the model's own checkpoint, float32 and mapped from disk. ``attach`` makes a proximal step after
each step of the optimizer, ``add_gradient_`` adds the gradient before it.

Each row comes from a process of its own. ``bytes`` is the size of the EWC's buffers. Time is a
multiple of a plain step taken right before, the median over rounds. ``added`` is by how much the
peak of the process's memory (of the GPU's with ``--device cuda``) during steps with the EWC lies
above that of plain steps: the state, what a step keeps for the next one, and what it needs for a
moment. Pages of a mapped file, which the system can drop, are not in it but in ``mapped``. Memory
is in bytes per protected weight; of the small network, beside which a process's memory is never
still, it is not reported. On a GPU there is one more state, compact on the CPU.

Rows are appended to ``state.csv`` in ``benchmarks/results/`` as they are measured, and those that
are there for this device are not measured again; ``state.md`` is made of all. ``--quick`` takes a
GPT-2 of two layers, to try it out, and prints only.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import memory, start_peak_anew
from ewc_tutorial.course.models import mlp
from ewc_tutorial.curvature import Compact
from ewc_tutorial.ewc import EWC
from experiments import stored_rows

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "state.csv"
GPT2, MLP = "GPT-2, 124 million weights", "MLP 784-400-400-10"
FULL, COMPACT, MAPPED, ON_CPU = "full", "compact", "compact, mapped", "compact, on the CPU"
WAYS = ("attach", "add_gradient_")
KEY = ["device", "model", "way", "state"]
MEASURED = ["bytes", "multiple", "ms_plain", "added", "mapped"]
COLUMNS = [*KEY, *MEASURED, "torch", "threads"]
MiB = 2**20


def language_loss(layers: int, device: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).to(device)
    ids = torch.randint(model.config.vocab_size, (1, 64)).to(device)
    return model, lambda: model(input_ids=ids, labels=ids).loss


def image_loss(device: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = mlp(784, [400, 400], 10, seed=0).to(device)
    x, y = torch.randn(128, 784).to(device), torch.randint(10, (128,)).to(device)
    return model, lambda: functional.cross_entropy(model(x), y)


class Memory:
    """The peak of what the process holds, or of what PyTorch has allocated on the GPU, in bytes."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"

    def begin(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            start_peak_anew()

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() if self.cuda else memory("VmHWM")


def remembering(model: nn.Module, state: str, file: Path) -> EWC:
    """Return an EWC that has consolidated a made-up Fisher information."""
    curvature: Any = {
        FULL: "diagonal",
        COMPACT: "compact",
        MAPPED: Compact(anchor=file),
        ON_CPU: Compact(device="cpu"),
    }[state]
    ewc = EWC(model, lam=1.0, rule="latest", curvature=curvature)
    if state == MAPPED:
        from safetensors.torch import save_file

        save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, file)
    ewc.merge({n: 1e-3 * torch.rand_like(p) for n, p in model.named_parameters()})
    return ewc


def measure(
    device: str, model: str, way: str, state: str, rounds: int, layers: int
) -> dict[str, Any]:
    """Return one row."""
    torch.manual_seed(0)
    network, loss = language_loss(layers, device) if model == GPT2 else image_loss(device)
    optim = torch.optim.Adam(network.parameters(), lr=1e-5)
    watch = Memory(device)

    def step(before: Callable[[], None] | None = None) -> None:
        optim.zero_grad()
        loss().backward()
        if before is not None:
            before()
        optim.step()

    def seconds(function: Callable[[], None]) -> float:
        start = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    step()  # makes what the optimizer keeps
    watch.begin()
    for _ in range(2):
        step()
    plain_peak = watch.peak()
    files = memory("RssFile")
    with tempfile.TemporaryDirectory() as folder:
        ewc = remembering(network, state, Path(folder) / "model.safetensors")
        weights = sum(p.numel() for p in ewc.weights().values())
        if way == "attach":
            ewc.attach(optim)
        with_ewc = step if way == "attach" else lambda: step(ewc.add_gradient_)
        with_ewc()
        watch.begin()
        for _ in range(2):
            with_ewc()
        peak = watch.peak()
        mapped = memory("RssFile") - files if state == MAPPED else 0.0
        # λ = 0 makes the step a plain one.
        plain, together = [], []
        for _ in range(rounds):
            for lam, times in ((0.0, plain), (1.0, together)):
                ewc.lam = lam
                times.append(seconds(with_ewc))
    added = peak - plain_peak - (mapped if device == "cpu" else 0.0)
    return {
        "bytes": sum(b.numel() * b.element_size() for b in ewc.buffers()) / weights,
        "multiple": statistics.median(b / a for a, b in zip(plain, together, strict=True)),
        "ms_plain": 1e3 * statistics.median(plain),
        "added": added / weights if model == GPT2 else float("nan"),
        "mapped": mapped / weights if model == GPT2 else float("nan"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def markdown(rows: pd.DataFrame) -> str:
    lines = [
        "# What remembering costs",
        "",
        "Bytes per protected weight of the state; a step's time as a multiple of a plain step "
        "beside it; and what the peak of memory during training rises by, state included, in bytes "
        "per protected weight, with, in brackets, how many more of a mapped file were in memory "
        "and can be dropped. GPT-2 has random weights and sequences of 64 tokens, one per step; "
        f"the small network has batches of 128. Both train with Adam. {platform.machine()} CPU. "
        "`python -m benchmarks.bench_state` makes this file.",
    ]
    for (device, model), part in rows.groupby(["device", "model"], sort=False):
        first = part.iloc[0]
        lines += [
            "",
            f"## {model}, {device}",
            "",
            f"PyTorch {first.torch}, {first.threads} threads; a plain step takes "
            f"{part.ms_plain.median():.3g} ms.",
            "",
            "| way | state | bytes | step | peak of memory |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        for row in part.itertuples():
            mapped = f" (+{row.mapped:.1f})" if row.mapped else ""
            peak = "" if pd.isna(row.added) else f"+{max(row.added, 0):.1f}{mapped}"
            lines.append(
                f"| {row.way} | {row.state} | {row.bytes:.2f} | {row.multiple:.2f}× | {peak} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", choices=(GPT2, MLP), default=[GPT2, MLP])
    parser.add_argument("--quick", action="store_true", help="two layers, and nothing is written")
    arguments = parser.parse_args()
    cuda = arguments.device != "cpu"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores"
    states = (FULL, COMPACT, MAPPED, *((ON_CPU,) if cuda else ()))
    done = set()
    if TABLE.exists() and not arguments.quick:
        done = set(pd.read_csv(TABLE)[KEY].itertuples(index=False, name=None))
    for model, way, state in product(arguments.only, WAYS, states):
        key = (name, model, way, state)
        if key in done:
            continue
        rounds = arguments.rounds if model == GPT2 else 20 * arguments.rounds
        layers = 2 if arguments.quick else 12
        # Another process for each, so that none starts with memory that another has left behind.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(
                measure, arguments.device, model, way, state, rounds, layers
            ).result()
        row = dict(zip(KEY, key, strict=True)) | {
            n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in found.items()
        }
        print(*(row[n] for n in (*KEY[1:], *MEASURED)), sep="  ", flush=True)
        if not arguments.quick:
            stored_rows.append(TABLE, [row], COLUMNS)
    if not arguments.quick:
        (RESULTS / "state.md").write_text(markdown(pd.read_csv(TABLE)))
        print(f"Written to {RESULTS}/state.csv and .md", file=sys.stderr)


if __name__ == "__main__":
    main()
