"""Measure Kronecker factors beside the alternatives: time and memory.

    python -m benchmarks.bench_factors [--rounds 7]

What one call of ``EWC.measure`` takes with Kronecker factors, exact over the classes, and with
exact eigenvalues (EKFAC) where that is asked for, on the networks of ``bench_fisher`` that have
such layers. Beside it stand nngeometry, curvlinops and laplace-torch (its online form takes a batch
at a time; here all of the data) where they are installed. Time is a multiple of a plain forward and
backward pass over the same data, measured right before in the same process, median over rounds.

Writes ``factors.csv`` and ``factors.md`` into ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.bench_fisher import Setting, settings
from benchmarks.fisher_rivals import BATCH, available, plain_pass
from benchmarks.timing import paired, peak_megabytes
from ewc_tutorial import EWC
from ewc_tutorial.curvature import Kronecker

RESULTS = Path(__file__).parent / "results"
MODELS = ("MLP", "CNN")
#: Samples for other packages, some of which take minutes for all.
FEW = 256
Method = Callable[[nn.Module, Tensor, Tensor], object]


def package(estimator: str, **options: str) -> Method:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> object:
        return EWC(model, curvature=Kronecker(**options)).measure((x, y), estimator)

    return run


def loader(x: Tensor, y: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=BATCH)


def nngeometry(model: nn.Module, x: Tensor, y: Tensor) -> object:
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatKFAC

    model = copy.deepcopy(model)
    layers = LayerCollection.from_model(model)
    return FIM(model, loader(x, y), PMatKFAC, "classif_logits", "cpu", layer_collection=layers)


def curvlinops(name: str) -> Method:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> object:
        import curvlinops

        operator = getattr(curvlinops, name)(
            model, nn.CrossEntropyLoss(), list(model.parameters()), list(loader(x, y)),
            fisher_type="type-2", separate_weight_and_bias=False, check_deterministic=False,
        )  # fmt: skip
        # The factors are computed when they are first used.
        return operator @ torch.ones(operator.shape[1])

    return run


def laplace(model: nn.Module, x: Tensor, y: Tensor) -> object:
    from laplace import Laplace

    found = Laplace(
        copy.deepcopy(model), "classification", subset_of_weights="all", hessian_structure="kron"
    )
    found.fit(loader(x, y))
    return found


def methods() -> dict[str, Method]:
    found = {
        "this package, exact": package("exact"),
        "this package, exact, EKFAC": package("exact", eigenvalues="exact"),
        "this package, empirical": package("empirical"),
    }
    if available("nngeometry"):
        found["nngeometry, KFAC, exact"] = nngeometry
    if available("curvlinops"):
        found["curvlinops, KFAC, exact"] = curvlinops("KFACLinearOperator")
        found["curvlinops, EKFAC, exact"] = curvlinops("EKFACLinearOperator")
    if available("laplace"):
        found["laplace-torch, Kronecker"] = laplace
    return found


def measure(setting: Setting, rounds: int) -> list[dict[str, object]]:
    x, y = setting.data()
    model = setting.model.eval()
    rows, pairs = [], {}
    for name, method in methods().items():
        n = len(x) if name.startswith("this package") else min(FEW, len(x))
        run = partial(method, model, x[:n], y[:n])
        try:
            peak = peak_megabytes(run)
        except Exception as error:  # another package's limits are a result, too
            print(f"  {name} cannot do the {setting.name}: {str(error).splitlines()[0][:90]}")
            continue
        rows.append({"model": setting.name, "method": name, "n": n, "peak_mb": peak})
        pairs[name] = run, partial(plain_pass, model, x[:n], y[:n])
    for row, seconds in zip(rows, paired(pairs, rounds).values(), strict=True):
        row["multiple"] = seconds.multiple()
        row["ms_per_1000"] = 1e6 * seconds.median() / row["n"]
    return rows


def markdown(table: pd.DataFrame, rounds: int) -> str:
    lines = [
        "# Kronecker factors",
        "",
        f"Time as a multiple of a plain forward and backward pass over the same data, median of "
        f"{rounds} rounds that alternate the two; memory is the rise of the process's. PyTorch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()} CPU, ten "
        f"classes; other packages on {FEW} samples. `make bench-fisher` makes this file.",
        "",
        "| network | method | time | memory |",
        "| --- | --- | ---: | ---: |",
    ]
    for row in table.itertuples():
        lines.append(f"| {row.model} | {row.method} | {row.multiple:.2f}× | {row.peak_mb:.0f} MB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    warnings.filterwarnings("ignore", module="(laplace|curvlinops|nngeometry)")
    rows = []
    for setting in settings(quick=False):
        if setting.name in MODELS:
            rows += measure(setting, arguments.rounds)
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "factors.csv", index=False, float_format="%.4g")
    text = markdown(table, arguments.rounds)
    (RESULTS / "factors.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
