"""Measure the importance for EWC where the old data cannot be had (notebook 09, section 9).

    python -m experiments.without_old_data          # add the rows that are missing
    python -m experiments.without_old_data --show   # print what the rows say

The small language model of notebook 09 learns instance 1 and then, held back by EWC, instance 2
(200 steps each, as there; many trainings of the second go on side by side). Only the text on which
F is measured differs, 192 sequences each, with labels that the model draws:

``old data``      the 48 sentences of instance 1, four times;
``own text``      192 sentences that the model writes after instance 1 (``own_text``);
``other people``  48 sentences of a third instance, four times: public text of the same kind;
``plain English`` the licence of this repository, in pieces as long as the sentences;
``new data``      the 48 sentences of instance 2, four times, before they are learned.

``one for all`` has ones in place of F, ``plain`` no penalty. ``order of NAME`` has the *values* of
the old data's F, the largest where that of NAME is largest, and so on: what differs from ``old
data`` then is the order alone.

λ is each method's own: on the seeds 100 and 101, three decades around a first guess, further ones
until the best is in between, then half a decade to both sides. Best is where the mean of old and
new loss is least. The seeds 0 to 4 report. Every finished run is a row of the table
``without_old_data``: ``old`` and ``new`` are the losses per token in nats after instance 2,
``recall`` the share of old facts that are left. The table ``without_old_data_measured`` holds, per
seed and source, what the F have in common with that of the old data (:func:`measured`).
"""

from __future__ import annotations

import argparse
import copy
import math
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ewc_tutorial.course import tables
from ewc_tutorial.course.language import (
    CHARACTERS,
    encode,
    instances,
    items,
    perplexity,
    recall,
    tiny_gpt,
    train_quietly,
)
from ewc_tutorial.course.without_old_data import best_lam, compared
from ewc_tutorial.huggingface import own_text, sequence_fisher
from experiments import stored_rows
from experiments.language_instances import BATCH, FIRST, LATER
from experiments.side_by_side import side_by_side

ROWS, MEASURED = tables.path("without_old_data"), tables.path("without_old_data_measured")
KEY = ["source", "lam", "seed"]
COLUMNS = [*KEY, "old", "new", "recall"]
DRAWS = 4
#: Trainings that go on side by side.
AT_ONCE = 24
SEARCH, REPORT = (100, 101), range(5)
TEXTS = ("old data", "own text", "other people", "plain English", "new data")
#: The power of ten that the search of λ begins at.
START = {
    "old data": -0.5,
    "own text": -0.5,
    "other people": -1.0,
    "plain English": -1.0,
    "new data": -1.0,
    "one for all": -1.0,
    "order of new data": -0.5,
}
METHODS = ("plain", *START)


@lru_cache(maxsize=2)
def learned(seed: int) -> tuple[nn.Module, list[list[Any]]]:
    """Return the model that has learned instance 1, and the instances."""
    data, model = instances(seed=seed), tiny_gpt(seed)
    train_quietly(model, data[0], seed=seed, **FIRST)
    return model, data


def english(length: int) -> list[dict[str, list[int]]]:
    """Return the licence in pieces of so many characters, in those that the model knows."""
    text = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8").lower()
    text = " ".join("".join(c if c in CHARACTERS[1:] else " " for c in text).split())
    pieces = [text[i : i + length] for i in range(0, len(text) - length, length)]
    return [{"input_ids": ids, "labels": ids} for ids in map(encode, pieces)]


def texts(source: str, seed: int) -> list[dict[str, list[int]]]:
    """Return what F is measured on."""
    model, (one, two, three) = learned(seed)
    n = DRAWS * len(one)
    if source == "own text":
        stop = {"eos_token_id": CHARACTERS.index(".")}
        return own_text(model, n, max_new_tokens=24, batch_size=n, generator=seed, **stop)
    if source == "plain English":
        return (n * english(length=18))[:n]
    return DRAWS * items({"old data": one, "other people": three, "new data": two}[source])


def flat(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


@lru_cache(maxsize=2)
def plain_end(seed: int) -> Tensor:
    """Return the weights after plain training."""
    return learn(seed, torch.zeros_like(flat(fisher("plain", seed)))[None])[0]


@lru_cache(maxsize=16)
def fisher(source: str, seed: int) -> dict[str, Tensor]:
    """Return the importance by parameter."""
    model, _ = learned(seed)
    if source in ("plain", "one for all"):
        value = float(source != "plain")
        return {name: torch.full_like(p, value) for name, p in model.named_parameters()}
    if source.startswith("order of "):
        values = flat(fisher("old data", seed))
        moved = torch.empty_like(values)
        moved[flat(fisher(source.removeprefix("order of "), seed)).argsort()] = values.sort().values
        parts = moved.split([p.numel() for p in model.parameters()])
        named = zip(model.named_parameters(), parts, strict=True)
        return {name: part.view_as(p) for (name, p), part in named}
    return sequence_fisher(model, texts(source, seed), generator=seed)


def run(seed: int, points: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """Learn instance 2 once for each source and λ and return the rows."""
    first, (one, two, _) = learned(seed)
    penalties = [lam * flat(fisher(source, seed)) for source, lam in points]
    rows = []
    for (source, lam), weights in zip(points, learn(seed, torch.stack(penalties)), strict=True):
        model = copy.deepcopy(first)
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
        rows.append(
            dict(zip(KEY, (source, lam, seed), strict=True))
            | {
                "old": round(math.log(perplexity(model, one)), 4),
                "new": round(math.log(perplexity(model, two)), 4),
                "recall": round(recall(model, one), 4),
            }
        )
    return rows


def learn(seed: int, penalties: Tensor) -> Tensor:
    """Learn instance 2 as the Trainer does, many times at once.

    Args:
        penalties: λF, a row ``(P,)`` for each training. Their batches are the same.

    Returns:
        The weights at the end, as ``penalties``.
    """
    first, (_, two, _) = learned(seed)
    return side_by_side(first, items(two), penalties, **LATER, batch_size=BATCH, seed=seed)


def measured(source: str, seed: int) -> dict[str, Any]:
    """Hold a source's F against that of the old data.

    Columns: ``sum`` of F, in units of the old data's; ``rank`` correlation over the weights;
    ``overlap`` of both after they are divided by their sums, Σ √(F F_old), 1 if they are equal
    (Kirkpatrick et al. 2017, supplement); ``along``, F's mean over the weights, weighted with the
    squared way of plain training on instance 2, over its plain mean: how stiff the springs are
    where that training wants to go. ``verbatim`` is the share of sentences that stand in
    instance 1.
    """
    first, (one, _, _) = learned(seed)
    start = nn.utils.parameters_to_vector(first.parameters()).detach()
    way = (plain_end(seed) - start).double().square()
    F, old = (flat(fisher(name, seed)).double() for name in (source, "old data"))
    known = {tuple(item["input_ids"]) for item in items(one)}
    sentences = texts(source, seed) if source in TEXTS else []
    found = sum(tuple(item["input_ids"]) in known for item in sentences)
    numbers = {
        "sum": float(F.sum() / old.sum()),
        "rank": float(pd.Series(F.numpy()).corr(pd.Series(old.numpy()), "spearman")),
        "overlap": float((F * old).sqrt().sum() / (F.sum() * old.sum()).sqrt()),
        "along": float((F * way).sum() / way.sum() / F.mean()),
        "verbatim": found / max(1, len(sentences)),
    }
    return {"source": source, "seed": seed} | {k: round(v, 4) for k, v in numbers.items()}


def quiet() -> None:
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


def wanted(rows: pd.DataFrame, source: str) -> list[float]:
    """Return the λ that the search wants next, given its rows so far."""
    if source == "plain":
        return [0.0]
    mine = rows[(rows.source == source) & rows.seed.isin(SEARCH)]
    loss = ((mine.old + mine.new) / 2).groupby(mine.lam).mean().to_dict()
    low = high = START[source]
    low, high = low - 1, high + 1
    while True:
        decades = [at(low + i) for i in range(round(high - low) + 1)]
        if not all(lam in loss for lam in decades):
            return decades
        best = min(decades, key=loss.__getitem__)
        if best not in (decades[0], decades[-1]) or high - low > 7:
            power = math.log10(best)
            return [*decades, at(power - 0.5), at(power + 0.5)]
        low, high = low - (best == decades[0]), high + (best == decades[-1])


def at(power: float) -> float:
    """Return a λ with two digits."""
    return float(f"{10**power:.2g}")


def search(sources: list[str]) -> None:
    """Run what the search wants, and the report of what it finds."""

    def do(seeds: Any, lams_of: Callable[[str], list[float]]) -> int:
        points = [(source, lam) for source in sources for lam in lams_of(source)]
        count = stored_rows.run_missing_at_once(ROWS, run, points, seeds, KEY, COLUMNS, AT_ONCE)
        print(f"{count} runs done", flush=True)
        return count

    while do(SEARCH, lambda source: wanted(stored(), source)):
        pass
    do(REPORT, lambda source: [best_lam(stored(), source)])


def stored() -> pd.DataFrame:
    return stored_rows.read(ROWS, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", default=list(METHODS))
    parser.add_argument("--show", action="store_true", help="run nothing")
    a = parser.parse_args()
    if not a.show:
        quiet()
        search(a.sources)
        known = stored_rows.read(MEASURED, KEY)
        done = set(known[["source", "seed"]].itertuples(index=False, name=None))
        for seed in REPORT:
            for source in a.sources:
                if source != "plain" and (source, seed) not in done:
                    stored_rows.append(MEASURED, [measured(source, seed)])
    print(compared(pd.read_csv(ROWS)).round(3).to_string())
    if MEASURED.exists():
        print(pd.read_csv(MEASURED).groupby("source", sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    main()
