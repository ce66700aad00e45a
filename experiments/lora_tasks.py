"""Teach a small language model several tasks with one LoRA adapter (notebook 09, section 8).

    python -m experiments.lora_tasks          # add the rows that are missing
    python -m experiments.lora_tasks --show   # print what the rows say

The model of notebook 09 learns instance 1 with all its weights and then three more instances, one
after the other, 200 steps each, in one of these ways:

``restart, EWC``     one adapter; after each task it is merged and begins anew, under ``LoraEWC``;
``kept, EWC``        one adapter, trained on and on, under ``LoraEWC``;
``kept, no EWC``     as the second, without penalty;
``adapter each``     each instance has an adapter of its own on the model that knows instance 1,
                     and somebody says which one to take: nothing can be forgotten;
``all weights, EWC`` no adapter: ``EWC`` on every weight.

All EWC have the rule ``latest``: F of all tasks so far, around the weights at present. λ is each
way's own: of the decades from 0.1 to 10, and further ones until the best is in between, the one
with the least mean loss of the four instances at the end, on the seeds 100 and 101. The learning
rates are those of the table ``language_instances``. The seeds 0 to 4 report. Every run is a row of
the table ``lora_tasks``: ``old``, the mean loss of the instances 1 to 3 at the end (nats per
token), ``new``, that of the last, ``mean``, that of all four; ``recall``, the share of old facts
that are left; and the bytes that are held beside the model's own weights after instance 2 and at
the end.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pandas as pd
from torch import Tensor, nn

from ewc_tutorial import EWC
from ewc_tutorial.course import tables
from ewc_tutorial.course.language import (
    Fact,
    instances,
    items,
    perplexity,
    recall,
    tiny_gpt,
    train_quietly,
    with_adapter,
)
from ewc_tutorial.course.lora_tasks import compared
from ewc_tutorial.huggingface import LoraEWC, consolidate
from experiments import stored_rows
from experiments.language_instances import ADAPTER, FIRST, LATER
from experiments.side_by_side import together
from experiments.without_old_data import DRAWS, REPORT, SEARCH, quiet

TABLE = tables.path("lora_tasks")
KEY = ["way", "lam", "seed"]
COLUMNS = [*KEY, "old", "new", "mean", "recall", "bytes_first", "bytes_last"]
INSTANCES = 4
EACH, WHOLE = "adapter each", "all weights, EWC"
WAYS = ("restart, EWC", "kept, EWC", "kept, no EWC", EACH, WHOLE)
#: Trainings that go on side by side.
AT_ONCE = 12


@cache
def learned(seed: int) -> tuple[nn.Module, list[list[Fact]]]:
    """Return the model that has learned instance 1, and the instances."""
    data, model = instances(INSTANCES, seed=seed), tiny_gpt(seed)
    train_quietly(model, data[0], seed=seed, **FIRST)
    return model, data


def held(model: nn.Module, ewc: EWC | None) -> int:
    """Return the bytes of adapters and of what an EWC remembers."""
    tensors: list[Tensor] = [p for name, p in model.named_parameters() if "lora_" in name]
    tensors += [] if ewc is None else list(ewc.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measures(model: nn.Module, facts: list[Fact]) -> tuple[float, float]:
    """Return loss per token and recall."""
    return math.log(perplexity(model, facts)), recall(model, facts)


def run(
    seed: int,
    points: list[tuple[str, float]],
    first: nn.Module,
    data: list[list[Fact]],
    steps: int = 200,
) -> list[dict[str, Any]]:
    """Learn the later instances once for each way and λ, and return the rows.

    Args:
        seed: of adapters and trainings.
        points: ways, which are all with adapters or all without, and λ.
        first: the model that has learned ``data[0]``; it stays as it is.
        data: the instances.
        steps: per instance.
    """
    whole = points[0][0] == WHOLE
    plan = {**(LATER if whole else ADAPTER), "steps": steps, "seed": seed}

    def fresh() -> nn.Module:
        return copy.deepcopy(first) if whole else with_adapter(copy.deepcopy(first), seed=seed)

    models = [fresh() for _ in points]
    kind = EWC if whole else LoraEWC
    ewcs = [kind(m, lam, rule="latest") for m, (_, lam) in zip(models, points, strict=True)]
    sizes: list[list[int]] = [[] for _ in points]
    own = [[measures(first, data[0])] for _ in points]  # right after a task was learned
    for task in range(1, len(data)):
        for i, (way, lam) in enumerate(points):
            if lam:
                consolidate(ewcs[i], DRAWS * items(data[task - 1]), generator=seed)
            if task > 1 and way.startswith("restart"):
                ewcs[i].restart_(INSTANCES * seed + task)
            if way == EACH:
                models[i] = fresh()
        active = [ewc if ewc.lam else None for ewc in ewcs]
        together(models, active, items(data[task]), **plan)
        for i, (way, _) in enumerate(points):
            own[i].append(measures(models[i], data[task]))
            before = sizes[i][-1] if way == EACH and sizes[i] else 0
            sizes[i].append(before + held(models[i], active[i]))
    rows = []
    for i, (way, lam) in enumerate(points):
        end = own[i] if way == EACH else [measures(models[i], facts) for facts in data]
        losses, recalls = zip(*end, strict=True)
        numbers = {
            "old": sum(losses[:-1]) / len(losses[:-1]),
            "new": losses[-1],
            "mean": sum(losses) / len(losses),
            "recall": sum(recalls[:-1]) / len(recalls[:-1]),
        }
        rows.append(
            {"way": way, "lam": lam, "seed": seed}
            | {name: round(value, 4) for name, value in numbers.items()}
            | {"bytes_first": sizes[i][0], "bytes_last": sizes[i][-1]}
        )
    return rows


def wanted(rows: pd.DataFrame, way: str) -> list[float]:
    """Return the λ that the search wants next, given its rows so far."""
    if not way.endswith(", EWC"):
        return [0.0]
    low, high = -1, 1
    while True:
        decades = [10.0**power for power in range(low, high + 1)]
        mine = rows[(rows.way == way) & rows.seed.isin(SEARCH) & rows.lam.isin(decades)]
        if set(mine.lam) != set(decades) or high - low > 5:
            return decades
        best = chosen(mine, way)[0]
        if decades[0] < best < decades[-1]:
            return decades
        low, high = low - (best == decades[0]), high + (best == decades[-1])


def chosen(rows: pd.DataFrame, way: str) -> list[float]:
    """Return the λ with the least mean loss on the search seeds."""
    mine = rows[(rows.way == way) & rows.seed.isin(SEARCH)]
    return [float(mine["mean"].groupby(mine.lam).mean().idxmin())]


def search(ways: list[str]) -> None:
    """Run what the search wants, and the report of what it finds."""

    def do(seeds: Iterable[int], lams: Callable[[pd.DataFrame, str], list[float]]) -> int:
        rows, count = stored(), 0
        for whole in (False, True):  # those with adapters and those without cannot be stacked
            kind = [way for way in ways if (way == WHOLE) == whole]
            points = [(way, lam) for way in kind for lam in lams(rows, way)]
            count += stored_rows.run_missing_at_once(
                TABLE, lambda seed, part: run(seed, part, *learned(seed)),
                points, seeds, KEY, COLUMNS, AT_ONCE,
            )  # fmt: skip
        print(f"{count} runs done", flush=True)
        return count

    while do(SEARCH, wanted):
        pass
    do(REPORT, chosen)


def stored() -> pd.DataFrame:
    return stored_rows.read(TABLE, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", default=list(WAYS))
    parser.add_argument("--show", action="store_true", help="run nothing")
    a = parser.parse_args()
    if not a.show:
        quiet()
        search(a.ways)
    print(compared(stored()).round(3).T.to_string())


if __name__ == "__main__":
    main()
