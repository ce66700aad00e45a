"""Measure what each importance of ``experiments/importances.py`` costs in time and memory.

    python -m benchmarks.bench_importances [--rounds 7]

A network 784-400-400-10 and 2,048 random images. Time is a multiple of one plain forward and
backward pass over the same data (batches of 128), measured right before each run in the same
process; the table has the median over rounds. What is measured after a task counts once per task.
What is followed during training counts once per *epoch*: an epoch of Adam with it, less one without
it, each as such a multiple. Bytes are those of the tensors that are there: ``kept`` what the EWC
holds from task to task, S and the anchor and with Kronecker factors their eigenvectors, and
``training`` what a method holds besides while a task is trained; the weights themselves, gradients
and Adam's own two moments are not counted.

Writes ``importances.csv`` and ``importances.md`` into ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.fisher_rivals import BATCH, plain_pass
from benchmarks.timing import paired
from ewc_tutorial import EWC
from ewc_tutorial.course import importances, mlp, train
from ewc_tutorial.fisher import fisher_diagonal

RESULTS = Path(__file__).parent / "results"
N = 2048


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """Yield the tensors among an object's attributes, at any depth of its dictionaries."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)


def nbytes(tensors: Iterator[Tensor]) -> int:
    """Return how many bytes they take, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def measured(x: Tensor, y: Tensor) -> dict[str, tuple[str, Callable[[EWC], Any]]]:
    """Return per method the curvature, and what is done after a task."""

    def diagonal(ewc: EWC, measure: Callable[..., Any], **options: Any) -> None:
        ewc.merge(measure(ewc.model, (x, y), **options))

    def fisher(estimator: str, **options: Any) -> Callable[[EWC], Any]:
        return partial(diagonal, measure=fisher_diagonal, estimator=estimator, **options)

    return {
        "exact": ("diagonal", fisher("exact")),
        "empirical": ("diagonal", fisher("empirical")),
        "squared batch mean": ("diagonal", fisher("batched", batch_size=BATCH)),
        "MAS": ("diagonal", partial(diagonal, measure=importances.memory_aware)),
        "EWC-DR": ("diagonal", partial(diagonal, measure=importances.reversed_logits)),
        "kronecker": ("kronecker", lambda ewc: ewc.consolidate((x, y))),
        "identity": ("identity", lambda ewc: ewc.consolidate((x, y))),
    }


def epoch(model: nn.Module, x: Tensor, y: Tensor, kind: str) -> Any:
    """Train for one epoch and return what has followed it."""
    adam = importances.SecondMoment(model)
    walker: Any = None
    if kind == "SI":
        walker = importances.PathIntegral(model)
    elif kind == "RWalk":
        walker = importances.RiemannianWalk(model)
        walker.begin(lambda: (x[:BATCH], y[:BATCH]))
    train(model, (x, y), epochs=1, lr=1e-4, batch_size=BATCH, optimizer=adam, on_step=walker)
    if walker is not None:
        walker.importance()
    elif kind == "Squisher":
        adam.importance()
    return walker


def measure(rounds: int) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 784, generator=g), torch.randint(10, (N,), generator=g)
    model = mlp(784, [400, 400], 10, seed=0)
    weights = sum(p.numel() for p in model.parameters())
    plain = partial(plain_pass, model, x, y)
    pairs, rows = {}, {}
    for name, (curvature, after) in measured(x, y).items():
        ewc = EWC(copy.deepcopy(model), curvature=curvature)
        pairs[name] = partial(after, ewc), plain
        after(ewc)
        rows[name] = {"per": "task", "kept": nbytes(tensors_in(dict(ewc.named_buffers())))}
    for name in ("Adam alone", "Squisher", "SI", "RWalk"):
        trained = copy.deepcopy(model)
        pairs[name] = partial(epoch, trained, x, y, name), plain
        held = getattr(epoch(trained, x, y, name), "__dict__", {})
        rows[name] = {
            "per": "epoch",
            "kept": rows["exact"]["kept"],
            "training": nbytes(tensors_in({k: v for k, v in held.items() if k != "_model"})),
        }
    seconds = paired(pairs, rounds)
    alone = seconds["Adam alone"].multiple()
    for name, row in rows.items():
        row["passes"] = seconds[name].multiple() - (alone if row["per"] == "epoch" else 0.0)
    rows["Adam alone"]["passes"] = alone
    return [
        {
            "method": name,
            "per": row["per"],
            "passes": round(row["passes"], 2),
            "bytes_kept": round(row["kept"] / weights, 2) if name != "Adam alone" else 0.0,
            "bytes_training": round(row.get("training", 0) / weights, 2),
        }
        for name, row in rows.items()
    ]


def markdown(table: pd.DataFrame, rounds: int) -> str:
    lines = [
        "# What an importance costs",
        "",
        "Time in plain forward and backward passes over the same 2,048 images, beyond the training "
        f"itself (batches of {BATCH}, 784-400-400-10, median of {rounds} rounds that alternate "
        "with the plain pass); bytes per weight, kept from task to task and held besides during "
        "training. Differences of a few tenths of a pass are within what one machine varies by. "
        f"PyTorch {torch.__version__}, one thread, {platform.machine()} CPU. "
        "`python -m benchmarks.bench_importances` makes this file.",
        "",
        "| method | passes | per | bytes kept | bytes in training |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for row in table.itertuples():
        lines.append(
            f"| {row.method} | {row.passes:.1f} | {row.per} | {row.bytes_kept:.1f} | "
            f"{row.bytes_training:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.DataFrame(measure(arguments.rounds))
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "importances.csv", index=False, lineterminator="\n")
    (RESULTS / "importances.md").write_text(markdown(table, arguments.rounds), encoding="utf-8")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
