"""Hold what other packages call the diagonal Fisher information against its definition.

    python -m benchmarks.rivals                 # measure what is installed and not in the table yet
    python -m benchmarks.rivals --again avalanche-lib

Two small networks on 200 images of the small digits, in batches of 32 and a last one of 8: an MLP
(64-32-10) and a CNN, both trained for 100 steps. Every package is called as it is meant to be
(``rival_calls``, listed in ``rival_entries``), and what it returns is compared with four sums over
single samples or batches in float64:

``exact``            the mean over samples of the expected squared score (the Fisher information);
``empirical``        the same for the label in the data;
``batch mean``       the mean over *batches* of the squared gradient of the batch's mean loss;
``batch mean, by size``  the same, batches weighted with their sizes.

The table names the one that a result is equal to after it is multiplied with a factor, and that
factor; the error is the largest difference, relative to the largest entry. Where a package draws
labels, the mean over 100 calls is compared, and called equal below 0.1. Ratio (median) and rank
correlation are over the weights of non-zero exact F. Time is in plain forward and backward passes
over the same data: with networks as small as these most of it is overhead.

The packages are not all installable side by side: run the script in each Python that has some. Rows
of others are kept. It writes ``rivals.csv`` and ``rivals.md`` into ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks import rival_calls as calls
from benchmarks.fisher_rivals import loop_empirical, loop_exact, plain_pass
from benchmarks.rival_entries import RIVALS, Rival
from benchmarks.timing import paired

RESULTS = Path(__file__).parent / "results"
KEY = ["model", "package", "call"]
COLUMNS = [*KEY, "version", "torch", "equal_to", "factor", "error", "ratio", "rank", "passes"]
N, DRAWS = 200, 100
#: Largest relative difference of what is called equal: of float32, and of a mean over draws.
EQUAL, EQUAL_DRAWN = 1e-4, 0.1


def settings() -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Return by name a trained network and the samples to measure it on."""
    from ewc_tutorial.course import mlp, permuted_tasks, train
    from ewc_tutorial.course.models import small_cnn

    task = permuted_tasks(1, seed=0)[0]
    x, y = task.train.tensors
    found = {}
    image = x.view(-1, 1, 8, 8)
    for name, model, inputs in (
        ("MLP", mlp(64, [32], 10, seed=0), x),
        ("CNN", small_cnn(channels=(4, 8), seed=0), image),
    ):
        train(model, (inputs, y), steps=100, lr=0.1, batch_size=32)
        found[name] = model.eval(), inputs[:N].contiguous(), y[:N]
    return found


def oracles(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, calls.Fisher]:
    """Return what a result may be, by single samples and batches in float64."""
    model, x = copy.deepcopy(model).double(), x.double()
    found = {"exact": loop_exact(model, x, y), "empirical": loop_empirical(model, x, y)}
    squares, sizes = [], []
    for x_part, y_part in calls.batches(x, y):
        model.zero_grad()
        nn.functional.cross_entropy(model(x_part), y_part).backward()
        squares.append({name: p.grad.square() for name, p in model.named_parameters()})
        sizes.append(len(x_part))
    for name, weights in (
        ("batch mean", [1 / len(sizes)] * len(sizes)),
        ("batch mean, by size", [size / len(x) for size in sizes]),
    ):
        found[name] = {
            k: sum(w * s[k] for w, s in zip(weights, squares, strict=True)) for k in squares[0]
        }
    return found


def compared(
    fisher: calls.Fisher, known: Mapping[str, calls.Fisher], equal: float = EQUAL
) -> dict[str, Any]:
    """Hold a result against the oracles: the columns from ``equal_to`` to ``rank``."""
    F, exact = flat(fisher, known["exact"]), flat(known["exact"], known["exact"])
    some = exact > 1e-12 * exact.max()
    errors, factors = {}, {}
    for name, oracle in known.items():
        values = flat(oracle, known["exact"])
        factors[name] = float(F @ values / (values @ values))
        rest = (F - factors[name] * values).abs().max()
        errors[name] = float(rest / (factors[name] * values.max()))
    nearest = min(errors, key=errors.__getitem__)
    there = errors[nearest] < equal
    return {
        "equal_to": nearest if there else "",
        "factor": factors[nearest] if there else None,
        "error": errors[nearest] if there else None,
        "ratio": float((F[some] / exact[some]).median()),
        "rank": float(
            pd.Series(F[some].numpy()).corr(pd.Series(exact[some].numpy()), method="spearman")
        ),
    }


def flat(fisher: calls.Fisher, like: calls.Fisher) -> Tensor:
    return torch.cat([fisher[name].detach().flatten().double() for name in like])


def measured(rival: Rival, model: nn.Module, x: Tensor, y: Tensor, known: Any) -> dict[str, Any]:
    """Return a row's numbers."""

    def call() -> calls.Fisher:
        return rival.call(copy.deepcopy(model), x, y)

    torch.manual_seed(0)
    start = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - start
    for _ in range(DRAWS - 1 if rival.drawn else 0):
        found = {name: value + found[name] for name, value in call().items()}
    mean = {name: value / (DRAWS if rival.drawn else 1) for name, value in found.items()}
    pair = {"": (call, partial(plain_pass, copy.deepcopy(model), x, y, calls.BATCH))}
    row = compared(mean, known, EQUAL_DRAWN if rival.drawn else EQUAL)
    return row | {"passes": paired(pair, 1 if seconds > 5 else 5)[""].multiple()}


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


INTRO = """# What other packages call the diagonal Fisher information

Two small networks, trained for 100 steps, and 200 images of the small digits, in batches of 32 and
a last one of 8. Each package is called as it is meant to be ([rival_calls.py](../rival_calls.py)),
and what it returns is held against sums over single samples or batches in float64:

- *exact*: the mean over samples of the expected squared score, which is the Fisher information;
- *empirical*: the same for the label in the data;
- *batch mean*: the mean over batches of the squared gradient of a batch's mean loss;
- *batch mean, by size*: the same, batches weighted with their sizes.

A result is *equal to* one of these times a *factor*, up to the *error*: the largest difference,
relative to the largest entry. Where labels are drawn, the mean of 100 calls is compared. *Ratio*
(the median) and *rank* correlation are over the weights, against the exact F. *Passes* is the time
in plain forward and backward passes over the same data; with networks as small as these most of it
is overhead ([larger ones](fisher.md)). A constant factor does no harm if λ is divided by it.
"""


def markdown(table: pd.DataFrame, rivals: tuple[Rival, ...] = RIVALS) -> str:
    """Return the page: numbers for each network, and what a user must know."""
    lines = [
        INTRO,
        f"PyTorch {', '.join(sorted(set(table.torch)))}, one thread. "
        "`python -m benchmarks.rivals` makes this file.",
    ]
    for model, rows in table.groupby("model", sort=False):
        lines += ["", f"## {model}", ""]
        lines += ["| package | call | equal to | factor | error | ratio | rank | passes |"]
        lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        for row in rows.itertuples():
            equal = "none of them |  | "
            if pd.notna(row.error):
                equal = f"{row.equal_to} | {row.factor:.3g} | {row.error:.0e}"
            lines.append(
                f"| {row.package} {row.version} | {row.call} | {equal} | "
                f"{row.ratio:.3g} | {row.rank:.3f} | {row.passes:.3g} |"
            )
    lines += ["", "## What to know", ""]
    there = set(zip(table.package, table.call, strict=True))
    lines += [f"- **{r.package}**, {r.name}: {r.note}" for r in rivals
              if r.note and (r.package, r.name) in there]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(results: Path = RESULTS, rivals: tuple[Rival, ...] = RIVALS) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", nargs="*", default=[], help="packages to measure anew")
    again = parser.parse_args().again
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    file = results / "rivals.csv"
    table = stored(file) if file.exists() else pd.DataFrame(columns=COLUMNS)
    table = table[~table.package.isin(again)]
    for name, (model, x, y) in settings().items():
        known = oracles(model, x, y)
        for rival in rivals:
            version = version_of(rival.package)
            key = (name, rival.package, rival.name)
            if version is None:
                print(f"{rival.package} is not installed here: {rival.name} left out")
            elif key not in set(table[KEY].itertuples(index=False, name=None)):
                row = dict(zip(KEY, key, strict=True)) | measured(rival, model, x, y, known)
                row |= {"version": version, "torch": torch.__version__.partition("+")[0]}
                table.loc[len(table)] = row
                print(*row.values(), flush=True)
                write(table.reset_index(drop=True), results, rivals)


def stored(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"version": str, "torch": str})


def write(table: pd.DataFrame, results: Path, rivals: tuple[Rival, ...] = RIVALS) -> None:
    """Write both files, the rows in the order of ``rivals``."""
    order = {(rival.package, rival.name): i for i, rival in enumerate(rivals)}
    places = [order.get(pair, len(order)) for pair in zip(table.package, table.call, strict=True)]
    models = table.model.map(lambda name: ("MLP", "CNN").index(name))
    table = table.assign(_model=models, _place=places).sort_values(["_model", "_place"])
    table = table[COLUMNS]
    results.mkdir(exist_ok=True)
    table.to_csv(results / "rivals.csv", index=False, float_format="%.4g")
    (results / "rivals.md").write_text(markdown(table, rivals), encoding="utf-8")


if __name__ == "__main__":
    main()
