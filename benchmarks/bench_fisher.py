"""Measure the Fisher engine beside the alternatives: time, memory, error.

    python -m benchmarks.bench_fisher [--rounds 7] [--quick]

Time is a multiple of one plain forward and backward pass over the same data (batch 128), measured
right before each run in the same process; the table has the median over rounds. Methods that take
far longer than the rest get fewer samples, as does the plain pass beside them. Memory is
how far the process's memory rises. The error is the largest difference from a float64 loop over
single samples, relative to that parameter's largest entry (at least to a millionth of the largest
entry of all). BackPACK, nngeometry and Avalanche are measured where they are installed (the
optional group ``bench``).

Writes ``fisher.csv``, ``fisher.md`` and ``fisher.png`` into ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import fisher_rivals as rivals
from benchmarks.timing import paired, peak_megabytes
from ewc_tutorial.course.models import mlp, small_cnn
from ewc_tutorial.fisher import fisher_diagonal

RESULTS = Path(__file__).parent / "results"
CLASSES = 10
PLAIN = "plain pass"
ENGINE = "this package"


class Block(nn.Module):
    """A pre-norm transformer block with separate projections, on (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in self.projections)
        # Written out: torch.func has no rule for the fused attention on a CPU.
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q, self.k, self.v


class Transformer(nn.Module):
    """Two blocks over the 28 rows of an image, with a learned position table."""

    def __init__(self, width: int = 64, packed: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(28, width), nn.Linear(width, CLASSES)
        self.places = nn.Parameter(0.02 * torch.randn(28, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
                if packed
                else Block(width, 4)
                for _ in range(2)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.squeeze(1)) + self.places).mean(1))


class Recurrent(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, width, batch_first=True), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


def layer_norm_mlp() -> nn.Sequential:
    hidden = [[nn.Linear(n, 400), nn.LayerNorm(400), nn.ReLU()] for n in (784, 400)]
    return nn.Sequential(nn.Flatten(), *hidden[0], *hidden[1], nn.Linear(400, CLASSES))


@dataclass(frozen=True)
class Setting:
    """A model, and how many samples are worth measuring it on."""

    name: str
    model: nn.Module
    n: int

    def data(self) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.n, 1, 28, 28, generator=g)
        return x, torch.randint(CLASSES, (self.n,), generator=g)


def settings(quick: bool) -> list[Setting]:
    torch.manual_seed(0)
    share = 8 if quick else 1
    return [
        Setting("MLP", nn.Sequential(nn.Flatten(), mlp(784, [400, 400], 10)), 4096 // share),
        Setting("LayerNorm MLP", layer_norm_mlp(), 4096 // share),
        Setting("CNN", small_cnn(image_size=28), 512 // share),
        Setting("transformer", Transformer(), 512 // share),
        Setting("transformer, packed attention", Transformer(packed=True), 256 // share),
        Setting("LSTM", Recurrent(), 512 // share),
    ]


@dataclass(frozen=True)
class Entry:
    """A method to measure: whose it is, what it estimates, and on how many samples (None: all)."""

    name: str
    estimator: str
    method: rivals.Method
    n: int | None = None


def engine(estimator: str) -> rivals.Method:
    return lambda model, x, y: fisher_diagonal(model, (x, y), estimator)


def entries() -> list[Entry]:
    found = [
        Entry(PLAIN, "", rivals.plain_pass),
        Entry(ENGINE, "empirical", engine("empirical")),
        Entry(ENGINE, "exact", engine("exact")),
        Entry("loop over samples", "empirical", rivals.loop_empirical, 256),
        Entry("loop over samples", "exact", rivals.loop_exact, 64),
        Entry("torch.func.vmap", "empirical", rivals.vmap_empirical, 256),
        Entry("torch.func.vmap", "exact", rivals.vmap_exact, 64),
    ]
    if rivals.available("backpack"):
        found.append(Entry("BackPACK", "empirical", rivals.backpack_empirical))
        found.append(Entry("BackPACK", "exact", rivals.backpack_exact))
    if rivals.available("nngeometry"):
        found.append(Entry("nngeometry", "exact", rivals.nngeometry_exact, 512))
    if rivals.available("avalanche"):
        found.append(Entry("Avalanche, batch 1", "empirical", rivals.avalanche(1), 256))
        found.append(Entry("Avalanche, batch 128", "batched", rivals.avalanche(128)))
    return found


def measure(setting: Setting, rounds: int) -> list[dict[str, object]]:
    """Return a row for each method that can do the model."""
    x, y = setting.data()
    model = setting.model.eval()
    small = (x[:48], y[:48])
    reference = {e: reference_fisher(model, *small, e) for e in ("empirical", "exact")}
    rows, pairs = [], {}
    for entry in entries():
        label = f"{entry.name}|{entry.estimator}"
        n = min(entry.n or len(x), len(x))
        row = {"model": setting.name, "method": entry.name, "estimator": entry.estimator, "n": n}
        try:
            row["error"] = largest_error(entry.method(model, *small), reference, entry.estimator)
        except Exception as error:  # another package's limits are a result, too
            print(f"  {label} cannot do the {setting.name}: {str(error).splitlines()[0][:90]}")
            continue

        def run(entry: Entry = entry, n: int = n) -> None:
            entry.method(model, x[:n], y[:n])

        row["peak_mb"] = peak_megabytes(run)
        pairs[label] = run, partial(rivals.plain_pass, model, x[:n], y[:n])
        rows.append(row)
    for row, seconds in zip(rows, paired(pairs, rounds).values(), strict=True):
        row["multiple"] = seconds.multiple()
        row["ms_per_1000"] = 1e6 * seconds.median() / row["n"]
    return rows


def reference_fisher(model: nn.Module, x: Tensor, y: Tensor, estimator: str) -> rivals.Fisher:
    loop = {"empirical": rivals.loop_empirical, "exact": rivals.loop_exact}[estimator]
    return loop(copy.deepcopy(model).double(), x.double(), y)


def largest_error(
    fisher: rivals.Fisher | None, reference: dict[str, rivals.Fisher], estimator: str
) -> float | None:
    if fisher is None or estimator not in reference:
        return None
    # A gradient that is zero by symmetry (of an attention's key bias) has only rounding errors to
    # show: hold them against something that is there.
    floor = 1e-6 * max(value.max().item() for value in reference[estimator].values())
    return max(
        ((fisher[name] - value).abs().max() / value.max().clamp(min=floor)).item()
        for name, value in reference[estimator].items()
    )


def markdown(table: pd.DataFrame, rounds: int) -> str:
    lines = [
        "# The diagonal Fisher information: time, memory, error",
        "",
        "Time as a multiple of a plain forward and backward pass over the same data (batch 128), "
        f"median of {rounds} rounds that alternate the two; memory as the rise of the process's "
        "memory; error as the largest difference from a float64 loop over single samples, relative "
        "to the parameter's largest entry. A method that is missing for a model cannot do it. "
        f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()} CPU. `make bench-fisher` makes this file.",
    ]
    for model, rows in table.groupby("model", sort=False):
        lines += ["", f"## {model}", "", "| method | estimator | time | memory | error |"]
        lines.append("| --- | --- | ---: | ---: | ---: |")
        for row in rows.sort_values("multiple").itertuples():
            memory = "" if pd.isna(row.peak_mb) else f"{row.peak_mb:.0f} MB"
            error = "" if pd.isna(row.error) else f"{row.error:.0e}"
            time = f"{row.multiple:.2f}×" if row.multiple < 10 else f"{row.multiple:.0f}×"
            name = f"**{row.method}**" if row.method == ENGINE else row.method
            lines.append(f"| {name} | {row.estimator} | {time} | {memory} | {error} |")
    return "\n".join(lines) + "\n"


MARKERS = {"empirical": ("^", "C2"), "exact": ("o", "C0"), "batched": ("X", "C3")}


def figure(table: pd.DataFrame) -> plt.Figure:
    """Draw one panel per model: methods against time on a logarithmic axis."""
    from ewc_tutorial.course.plots.style import set_style

    set_style()
    models = list(table["model"].unique())
    methods = [m for m in table["method"].unique() if m != PLAIN][::-1]
    fig, axes = plt.subplots(2, 3, figsize=(11, 7.5), sharex=True, sharey=True)
    for ax, model in zip(axes.flat, models, strict=True):
        rows = table[(table["model"] == model) & (table["method"] != PLAIN)]
        for estimator, (marker, color) in MARKERS.items():
            some = rows[rows["estimator"] == estimator]
            places = [methods.index(method) for method in some["method"]]
            ax.plot(some["multiple"], places, marker, color=color, ms=8, label=estimator)
            for multiple, place in zip(some["multiple"], places, strict=True):
                text = f"{multiple:.1f}" if multiple < 10 else f"{multiple:.0f}"
                offset = (0, 6 if estimator != "exact" else -13)
                ax.annotate(
                    text,
                    (multiple, place),
                    offset,
                    textcoords="offset points",
                    ha="center",
                    fontsize="x-small",
                )
        ax.axvline(1, color="C7", linestyle="--")
        ax.set(xscale="log", xlim=(0.5, 1500), title=model)
        ax.set_yticks(range(len(methods)), methods)
        ax.margins(y=0.15)
    axes[0, 0].legend(loc="lower right", fontsize="x-small")
    fig.supxlabel("time as a multiple of a plain forward and backward pass (dashed)", fontsize=10)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="an eighth of the data, to try it out")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    for setting in settings(arguments.quick):
        print(f"{setting.name}, {setting.n} samples")
        rows += measure(setting, arguments.rounds)
        for row in rows:
            if row["model"] == setting.name:
                print(f"  {row['method']:22} {row['estimator']:10} {row['multiple']:8.2f}×")
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "fisher.csv", index=False, float_format="%.4g")
    (RESULTS / "fisher.md").write_text(markdown(table, arguments.rounds))
    figure(table).savefig(RESULTS / "fisher.png", dpi=110)
    print(f"Written to {RESULTS}/fisher.csv, .md and .png")


if __name__ == "__main__":
    main()
