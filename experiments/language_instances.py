"""Teach a small language model three instances one after another, for notebook 09.

    python -m experiments.language_instances [SEEDS]

Writes perplexity and exact recall of every instance after every stage to
the table ``language_instances``: rows of a run that is there already are kept, so that it
can be stopped and started again. About five seconds per run of two stages on an idle core.

Methods: ``plain``; ``EWC`` (rule ``separate``); ``average`` (the running mean of the Fishers);
``source`` (the program of Concept-1K, to the letter: batch means of token means squared, measured
in training mode, the running mean, its own λ); ``LoRA`` (a fresh adapter for all later instances,
no penalty); ``LoRA + EWC on A and B``; ``LoRA + EWC on the weights``; ``joint`` (all instances so
far, as many steps as others).
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator

import pandas as pd
import torch
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
from ewc_tutorial.huggingface import LoraEWC, collator, consolidate
from experiments import stored_rows

TABLE = tables.path("language_instances")
FIRST = {"steps": 200, "lr": 3e-3}  # the first instance, from scratch
LATER = {"steps": 200, "lr": 1e-3}
ADAPTER = {"steps": 200, "lr": 5e-3}
BATCH = 16
LORA_AB, LORA_W = "LoRA + EWC on A and B", "LoRA + EWC on the weights"
#: The values of λ of each method, from hardly any protection to hardly any learning.
LADDER = (0.01, 0.1, 1.0, 10.0, 100.0)
LADDERS = {
    "plain": (0.0,),
    "EWC": LADDER,
    "LoRA": (0.0,),
    LORA_W: LADDER,
    LORA_AB: LADDER,
    "average": LADDER,
    "source": (5e2, 5e3, 5e4, 5e5),
    "joint": (0.0,),
}
RUNS = [(method, lam) for method, ladder in LADDERS.items() for lam in ladder]


def source_fisher(
    model: nn.Module, facts: list[Fact], batch_size: int = BATCH
) -> dict[str, Tensor]:
    """Return what the published program calls Fisher: squared gradients of the mean loss of a
    batch, itself a mean over tokens, weighted by the batch's size.

    Source: ``fisher_matrix_diag`` in models/EWC.py of the repository
    zzz47zzz/codebase-for-incremental-learning-with-llm (Zheng et al. 2024, arXiv 2402.08526). It
    measures in training mode; ``tiny_gpt`` has no dropout, so here that changes nothing.
    """
    data, was_training = items(facts), model.training
    model.train()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for start in range(0, len(data), batch_size):
        batch = collator(model)(data[start : start + batch_size])
        model.zero_grad()
        model(**batch).loss.backward()
        for name, p in model.named_parameters():
            total[name] += len(batch["input_ids"]) * p.grad.square() / len(data)
    model.zero_grad()
    model.train(was_training)
    return total


def run(
    method: str,
    lam: float,
    seed: int,
    model: nn.Module,
    data: list[list[Fact]],
    curvature: str = "diagonal",
    update: str = "gradient",
) -> pd.DataFrame:
    """Return the rows of one run, which starts when the first instance is learned.

    ``curvature`` is that of the method ``EWC``; ``update`` is as for the Trainer.
    """
    lora = method.startswith("LoRA")
    if lora:
        model = with_adapter(model, seed=seed)
    plan = ADAPTER if lora else LATER
    ewc = None
    if method in ("EWC", LORA_AB):
        ewc = EWC(model, lam=lam, curvature=curvature)
    elif method in ("average", "source"):
        ewc = EWC(model, lam=lam, rule="average")
    elif method == LORA_W:
        ewc = LoraEWC(model, lam=lam)
    rows = []
    for stage in range(len(data)):
        if stage:
            if method == "source":
                ewc.merge(source_fisher(model, data[stage - 1]))
            elif ewc is not None:
                # Four draws of the labels for each sequence.
                consolidate(ewc, 4 * items(data[stage - 1]))
            facts = data[stage]
            if method == "joint":
                facts = [fact for part in data[: stage + 1] for fact in part]
            train_quietly(
                model, facts, ewc=ewc, batch_size=BATCH, seed=seed, ewc_update=update, **plan
            )
        for i, part in enumerate(data):
            values = (round(perplexity(model, part), 4), round(recall(model, part), 4))
            rows.append((method, lam, seed, stage, i, *values))
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = ["method", "lam", "seed", "stage", "instance", "perplexity", "recall"]


def missing(table: pd.DataFrame, seeds: int) -> Iterator[tuple[int, list[tuple[str, float]]]]:
    """Yield each seed with the runs that the table lacks."""
    done = set(zip(table.method, table.lam, table.seed, strict=True))
    for seed in range(seeds):
        if todo := [r for r in RUNS if (*r, seed) not in done]:
            yield seed, todo


def main() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    table = stored_rows.read(TABLE, COLUMNS)
    for seed, todo in missing(table, seeds):
        data, first = instances(seed=seed), tiny_gpt(seed)
        train_quietly(first, data[0], batch_size=BATCH, seed=seed, **FIRST)
        for method, lam in todo:
            part = run(method, lam, seed, copy.deepcopy(first), data)
            stored_rows.append(TABLE, part.to_dict("records"))
            last = part[part.stage == len(data) - 1]
            print(seed, method, lam, *last.perplexity, *last.recall, flush=True)


if __name__ == "__main__":
    main()
