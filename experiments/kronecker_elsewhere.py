"""Kronecker factors beside the diagonal where the course learns something else than permutations.

    python -m experiments.kronecker_elsewhere                    # add all rows that are missing
    python -m experiments.kronecker_elsewhere task --seeds 0 1   # some of them
    python -m experiments.kronecker_elsewhere --show             # print what the rows say

Settings: ``language`` (notebook 09: two instances of facts, AdamW), ``speech`` (notebook 10: a new
voice, AdamW), ``task``, ``domain`` and ``class`` (notebook 07: five pairs of digits, Adam, the
course's learning rate), and ``mnist-task`` and so on, which are Split MNIST as in ``reproduce.py``
but with 500 steps per task and 5,000 samples for the Fisher information. λ of the scenarios is
chosen on three seeds from 100 on, of Split MNIST on two. What the tables ``language_instances``,
``speech_corrections`` and ``scenario_search`` have of plain training and of the diagonal is not run
again; the rest is in the table ``kronecker_elsewhere``, a row as soon as it is done.

``old`` and ``new`` are perplexities (``language``), word error rates (``speech``) or accuracies
(the scenarios: the mean over the earlier tasks, and the last). With perplexities and error rates no
single λ is the best one, as the old is paid for with the new. So the curvatures are compared at
equal quality of the new: on the curve over λ of each seed, the old where the new is worse than
plain training by a given share or by some points of error.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from ewc_tutorial import EWC
from ewc_tutorial.course import tables
from ewc_tutorial.course.scenarios import LR, SCENARIOS, learn_scenario
from experiments import reproduce, scenario_search, stored_rows

ROWS = tables.path("kronecker_elsewhere")
KEY = ["setting", "curvature", "update", "lam", "seed"]
COLUMNS = [*KEY, "old", "new", "old_recall", "new_recall", "average_accuracy"]
CURVATURES = ("plain", "diagonal", "kronecker")
MNIST = {f"mnist-{scenario}": scenario for scenario in SCENARIOS}
SETTINGS = ("language", "speech", *SCENARIOS, *MNIST)
#: Powers of ten per setting and curvature, from hardly any protection to hardly any learning.
GRIDS = {
    "language": {"diagonal": (-2, 2), "kronecker": (-2, 2)},
    "speech": {"diagonal": (0, 4), "kronecker": (0, 4)},
    "task": {"diagonal": (0, 6), "kronecker": (0, 4)},
    "domain": {"diagonal": (0, 6), "kronecker": (0, 4)},
    "class": {"diagonal": (0, 6), "kronecker": (0, 4)},
    "mnist-task": {"diagonal": (2, 5), "kronecker": (1, 4)},
    "mnist-domain": {"diagonal": (2, 5), "kronecker": (1, 4)},
    "mnist-class": {"diagonal": (2, 5), "kronecker": (1, 4)},
}
#: Those of ``scenario_search``.
SEARCH = scenario_search.SEEDS
REPORT = range(3)
#: How much worse than plain training the new may be: the factor of a perplexity, points of error.
ALLOWED = {"language": (1.05, 1.2), "speech": (0.05, 0.1)}


def run(setting: str, curvature: str, update: str, lam: float, seed: int) -> dict[str, Any]:
    """Return one row. ``update`` says how the penalty enters a step, as in the lessons."""
    torch.set_num_threads(1)
    if setting == "language":
        found = _language(curvature, update, lam, seed)
    elif setting == "speech":
        found = _speech(curvature, lam, seed)
    else:
        accuracy = (_split_mnist if setting in MNIST else _scenario)(setting, curvature, lam, seed)
        found = {
            "old": accuracy[:-1].mean(),
            "new": accuracy[-1],
            "average_accuracy": accuracy.mean(),
        }
    key = dict(zip(KEY, (setting, curvature, update, lam, seed), strict=True))
    return key | {name: round(float(value), 4) for name, value in found.items()}


@lru_cache(maxsize=1)
def _language_model(seed: int) -> tuple[Any, list]:
    """Return two instances and a model that knows the first."""
    from ewc_tutorial.course import language
    from experiments import language_instances as instances

    data, model = language.instances(seed=seed)[:2], language.tiny_gpt(seed)
    language.train_quietly(model, data[0], batch_size=instances.BATCH, seed=seed, **instances.FIRST)
    return model, data


def _language(curvature: str, update: str, lam: float, seed: int) -> dict[str, float]:
    from experiments import language_instances as instances

    model, data = _language_model(seed)
    method, form = ("plain", "diagonal") if curvature == "plain" else ("EWC", curvature)
    rows = instances.run(method, lam, seed, copy.deepcopy(model), data, form, update)
    old, new = rows[rows.stage == 1].itertuples()
    return {
        "old": old.perplexity,
        "new": new.perplexity,
        "old_recall": old.recall,
        "new_recall": new.recall,
    }


@lru_cache(maxsize=1)
def _speech_material(seed: int) -> tuple[TemporaryDirectory, tuple[list, ...]]:
    """Return the folder of a base model, and the recordings."""
    from ewc_tutorial.speech.base import train_tiny
    from experiments import speech_corrections as corrections

    folder = TemporaryDirectory()
    train_tiny(seed).save(Path(folder.name))
    return folder, corrections.material(seed)


def _speech(curvature: str, lam: float, seed: int) -> dict[str, float]:
    from ewc_tutorial.speech.learning import evaluate, learn
    from ewc_tutorial.speech.recogniser import Recogniser
    from experiments import speech_corrections as corrections

    folder, (old, old_tests, new, new_tests) = _speech_material(seed)
    recogniser = Recogniser(folder.name)
    form = "diagonal" if curvature == "plain" else curvature
    plan = replace(
        corrections.PLAN, lam=lam, seed=seed, curvature=form, checkpoint_every=10**6
    )  # fmt: skip
    learn(recogniser, old, new, plan)
    return {"old": evaluate(recogniser, old_tests), "new": evaluate(recogniser, new_tests)}


def _scenario(setting: str, curvature: str, lam: float, seed: int) -> np.ndarray:
    if curvature == "plain":
        return scenario_search.accuracies(setting, "plain", LR, lam, seed)
    return scenario_search.accuracies(setting, "EWC", LR, lam, seed, curvature)


def _split_mnist(setting: str, curvature: str, lam: float, seed: int) -> np.ndarray:
    scenario = MNIST[setting]
    net = reproduce.split_net(scenario, seed, "cpu")
    ewc = None
    if curvature != "plain":
        ewc = EWC(net, lam, exclude=net.exclude, curvature=curvature)
    options = reproduce.SPLIT_OPTIONS | {"update": "proximal", "steps": 500, "n_samples": 5000}
    tasks = reproduce.split_mnist(scenario, seed, "cpu")
    history = learn_scenario(
        net, tasks, ewc, optimizer=reproduce.CarriedAdam(), seed=seed, **options
    )
    return history.accuracy[-1]


def known() -> pd.DataFrame:
    """Return what other tables hold of the same runs, in the columns of this one."""
    language = tables.load("language_instances").query("stage == 1 and method in ('plain', 'EWC')")
    both = language.pivot(
        index=["method", "lam", "seed"], columns="instance", values=["perplexity", "recall"]
    )
    facts = pd.DataFrame(
        {
            "old": both["perplexity", 0],
            "new": both["perplexity", 1],
            "old_recall": both["recall", 0],
            "new_recall": both["recall", 1],
        }
    ).reset_index()
    speech = tables.load("speech_corrections").rename(columns={"run": "method"})
    search = tables.load("scenario_search").query(f"lr == {LR} and seed in {SEARCH}")
    search = search.rename(columns={"scenario": "setting", "accuracy": "average_accuracy"})
    parts = [
        facts.assign(setting="language", update="gradient"),
        speech.assign(setting="speech", update="gradient"),
        search.assign(update="proximal"),
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows["curvature"] = rows.method.map({"plain": "plain", "EWC": "diagonal"})
    return rows.dropna(subset="curvature").reindex(columns=COLUMNS)


def load() -> pd.DataFrame:
    """Return the rows of this table and of the others."""
    own = [pd.read_csv(ROWS)] if ROWS.exists() else []
    return pd.concat([known(), *own], ignore_index=True)


def curves(settings: list[str], seeds: list[int]) -> Iterator[tuple]:
    """Yield the values of ``KEY`` of the runs over λ, those of a seed together."""
    for setting in settings:
        traded = setting in ALLOWED
        for seed in REPORT if traded else SEARCH[:2] if setting in MNIST else SEARCH:
            if seeds and seed not in seeds:
                continue
            for curvature, (low, high) in GRIDS[setting].items():
                for power in range(low, high + 1):
                    yield setting, curvature, _update(setting), 10.0**power, seed
            yield setting, "plain", _update(setting), 0.0, seed


def reports(settings: list[str], seeds: list[int]) -> Iterator[tuple]:
    """Yield those of the scenarios at the λ that the search chose."""
    rows = load()
    for setting in settings:
        if setting in ALLOWED:
            continue
        search = rows[(rows.setting == setting) & rows.seed.isin(SEARCH)]
        means = search.groupby(["curvature", "lam"]).average_accuracy.mean()
        seeds_here = REPORT if setting in MNIST else range(5)
        for seed in [s for s in seeds_here if not seeds or s in seeds]:
            for curvature, of_one in means.groupby("curvature"):
                yield setting, curvature, _update(setting), of_one.idxmax()[1], seed


def _update(setting: str) -> str:
    return "gradient" if setting in ALLOWED else "proximal"


def at_equal_new(curve: pd.DataFrame, limit: float, column: str = "old") -> float:
    """Return the old where the new is at ``limit``, the worst that is allowed.

    Args:
        curve: rows of one seed with ``lam``, ``new`` (lower is better) and ``column``.
        limit: a value of ``new``. Between two λ the curve is taken as a straight line.
        column: what to return.

    Returns:
        The value at the largest λ at which the new is no worse; not a number if the curve does not
        cross the limit.
    """
    curve = curve.sort_values("lam")
    new, old = curve["new"].to_numpy(), curve[column].to_numpy()
    crossings = np.flatnonzero((new[:-1] <= limit) & (new[1:] > limit))
    if not len(crossings):
        return float("nan")
    i = crossings[-1]
    share = (limit - new[i]) / (new[i + 1] - new[i])
    return float(old[i] + share * (old[i + 1] - old[i]))


def equal_new(rows: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return, per allowed loss of the new and seed, the old of each curvature and plain training's.

    The columns are those of the curvatures, and with ``language`` the recall as well.
    """
    found = []
    for seed, of_seed in rows[rows.setting == setting].groupby("seed"):
        plain = of_seed[of_seed.curvature == "plain"]
        if plain.empty:
            continue
        columns = ["old", "old_recall"] if setting == "language" else ["old"]
        for allowed in ALLOWED[setting]:
            new = float(plain.new.iloc[0])
            limit = new * allowed if setting == "language" else new + allowed
            row = {"allowed": allowed, "seed": seed}
            for column in columns:
                row[f"{column}, plain"] = float(plain[column].iloc[0])
                for kind in CURVATURES[1:]:
                    curve = pd.concat([plain, of_seed[of_seed.curvature == kind]])
                    row[f"{column}, {kind}"] = at_equal_new(curve, limit, column)
            found.append(row)
    return pd.DataFrame(found)


def best(rows: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return the average accuracy per report seed and curvature, each at its searched λ."""
    found = {}
    rows = rows[(rows.setting == setting) & rows.average_accuracy.notna()]
    for curvature, part in rows.groupby("curvature"):
        try:
            chosen = tables.reported(part, ["lam"])
        except ValueError as problem:  # not all runs are there yet
            print(f"{setting}, {curvature}: {problem}")
            continue
        found[f"{curvature}, λ = {chosen.lam.iloc[0]:g}"] = chosen.set_index(
            "seed"
        ).average_accuracy
    return pd.DataFrame(found)


def _summary(values: pd.DataFrame) -> pd.DataFrame:
    return values.agg(["mean", "sem", "count"]).T


def show(settings: list[str]) -> None:
    """Print means, standard errors, and the differences between curvatures, paired by seed."""
    rows = load()
    for setting in settings:
        part = rows[rows.setting == setting]
        if part.empty:
            continue
        print(f"\n{setting}")
        values = ["old", "new", "old_recall", "new_recall", "average_accuracy"]
        means = part[part.seed < SEARCH[0]].groupby(["curvature", "lam"])[values].mean()
        print(means.dropna(axis=1, how="all").round(4).to_string())
        if setting in ALLOWED:
            for allowed, group in equal_new(rows, setting).groupby("allowed"):
                group = group.drop(columns=["allowed", "seed"])
                for column in {name.split(",")[0]: None for name in group}:
                    group[f"{column}, kronecker − diagonal"] = (
                        group[f"{column}, kronecker"] - group[f"{column}, diagonal"]
                    )
                print(f"the new worse than plain training's by {allowed:g}")
                print(_summary(group).round(4).to_string())
            continue
        accuracy = best(rows, setting)
        names = {name.split(",")[0]: name for name in accuracy}
        if {"diagonal", "kronecker"} <= names.keys():
            accuracy["kronecker − diagonal"] = (
                accuracy[names["kronecker"]] - accuracy[names["diagonal"]]
            )
        if not accuracy.empty:
            print(_summary(accuracy).round(4).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="all if not given")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="run nothing")
    a = parser.parse_args()
    if not a.show:
        # λ is chosen when all curves are there.
        for jobs in (curves, reports):
            done = set(known()[KEY].itertuples(index=False, name=None))
            todo = [job for job in jobs(a.settings, a.seeds) if job not in done]
            stored_rows.run_missing(ROWS, run, todo, KEY, COLUMNS, a.workers)
    show(a.settings)


if __name__ == "__main__":
    main()
