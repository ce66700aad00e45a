"""What Fisher information, a training step and a sweep cost on a GPU.

    python -m benchmarks.gpu [--only fisher step sweep state] [--rounds 7] [--out FOLDER]

The counterpart of ``bench_fisher``, ``bench_step`` and ``bench_sweep``, with the larger networks
that a GPU is for: time as a multiple of a plain pass (step, run) of the same batches, measured
right before in the same process, the median over rounds; memory as the rise of the peak that
PyTorch has allocated. Without a GPU it runs on the CPU, slowly, which is for trying it out.

Each part writes its rows as soon as it has them, ``gpu_PART.csv`` in ``benchmarks/results/``, with
the device and PyTorch's version; ``gpu.md`` is made of all that are there.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import fisher_rivals as rivals
from benchmarks.timing import paired
from ewc_tutorial.course import learn, mlp, permuted_tasks
from ewc_tutorial.course.models import small_cnn
from ewc_tutorial.course.sweep import lambda_sweep
from ewc_tutorial.curvature.compact import Compact
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.huggingface import sequence_fisher

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAME = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
GPT2 = "GPT-2, 124 million weights"

Row = dict[str, Any]


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def finished(function: Callable[[], object]) -> Callable[[], None]:
    """Return the function as one that returns when the GPU has done its work."""

    def run() -> None:
        wait()
        function()
        wait()

    return run


def peak_megabytes(function: Callable[[], object]) -> float:
    """Return how far the memory that PyTorch has allocated rises while the function runs."""
    if DEVICE == "cpu":
        return float("nan")
    wait()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- Fisher ------------------------------------------------------------------------------------


def resnet18(classes: int) -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=classes)


def images(n: int, channels: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, size, size, generator=g).to(DEVICE)
    return x, torch.randint(classes, (n,), generator=g).to(DEVICE)


def fisher_rows(rounds: int) -> Iterator[Row]:
    """Yield the rows of the image networks, then those of GPT-2."""
    torch.manual_seed(0)
    networks = {
        "MLP 784-400-400-10": (
            nn.Sequential(nn.Flatten(), mlp(784, [400, 400], 10)),
            images(8192, 1, 28, 10),
        ),
        "CNN": (small_cnn(image_size=28), images(4096, 1, 28, 10)),
        "ResNet-18, 10 classes": (resnet18(10), images(1024, 3, 32, 10)),
        "ResNet-18, 100 classes": (resnet18(100), images(512, 3, 32, 100)),
    }
    for name, (network, (x, y)) in networks.items():
        model = network.to(DEVICE).eval()
        reference = {e: loop(model, x[:4], y[:4], e) for e in ("empirical", "exact")}

        def engine(
            estimator: str, batch: int | None, x: Tensor = x, y: Tensor = y, model: Any = model
        ) -> Any:
            return fisher_diagonal(model, (x, y), estimator, batch_size=batch)

        def kronecker(x: Tensor = x, y: Tensor = y, model: Any = model) -> Any:
            return EWC(model, curvature="kronecker").measure((x, y), batch_size=rivals.BATCH)

        ways: dict[tuple[str, str], Callable[[], Any]] = {
            ("this package", "empirical"): partial(engine, "empirical", rivals.BATCH),
            ("this package, batches as it chooses", "empirical"): partial(
                engine, "empirical", None
            ),
            ("torch.func.vmap", "empirical"): partial(rivals.vmap_empirical, model, x, y, 128),
            ("this package", "exact"): partial(engine, "exact", rivals.BATCH),
            ("this package, batches as it chooses", "exact"): partial(engine, "exact", None),
            ("this package", "Kronecker"): kronecker,
        }
        errors = {
            e: largest_error(fisher_diagonal(model, (x[:4], y[:4]), e), reference[e])
            for e in reference
        }
        plain = finished(partial(rivals.plain_pass, model, x, y))
        yield from timed(name, ways, plain, errors, rounds, len(x))
    yield from gpt2_rows(rounds)


def timed(
    model: str,
    ways: dict[tuple[str, str], Callable[[], Any]],
    plain: Callable[[], None],
    errors: dict[str, float],
    rounds: int,
    n: int,
) -> Iterator[Row]:
    pairs, memory = {}, {}
    plain_peak = peak_megabytes(plain)
    for key, way in ways.items():
        try:
            memory[key] = peak_megabytes(way)
        except Exception as error:  # what cannot be done is a result, too
            print(f"  {model}, {key}: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
            continue
        pairs[key] = (finished(way), plain)
    for (method, estimator), seconds in paired(pairs, rounds).items():
        yield {
            "model": model,
            "method": method,
            "estimator": estimator,
            "n": n,
            "multiple": seconds.multiple(),
            "ms_per_1000": 1e6 * seconds.median() / n,
            "peak_mb": memory[method, estimator],
            "plain_peak_mb": plain_peak,
            "error": errors.get(estimator) if method == "this package" else None,
        }


def loop(model: nn.Module, x: Tensor, y: Tensor, estimator: str) -> rivals.Fisher:
    method = {"empirical": rivals.loop_empirical, "exact": rivals.loop_exact}[estimator]
    return method(copy.deepcopy(model).double(), x.double(), y)


def largest_error(found: rivals.Fisher, reference: rivals.Fisher) -> float:
    floor = 1e-6 * max(value.max().item() for value in reference.values())
    return max(
        ((found[name] - value).abs().max() / value.max().clamp(min=floor)).item()
        for name, value in reference.items()
    )


def gpt2(size: str = "gpt2") -> nn.Module:
    """Return GPT-2 with random weights: of 124 million, or of 1.5 billion (``xl``)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    options = {"gpt2": {}, "xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25}}[size]
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **options)
    with torch.device(DEVICE):
        return GPT2LMHeadModel(config).eval()


def sequences(n: int, length: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(50257, (n, length), generator=g).to(DEVICE)


def gpt2_rows(rounds: int, n: int = 32, length: int = 512, batch: int = 4) -> Iterator[Row]:
    model, tokens = gpt2(), sequences(n, length)
    data = [{"input_ids": row, "labels": row} for row in tokens]

    def plain() -> None:
        for part in tokens.split(batch):
            model.zero_grad()
            model(input_ids=part, labels=part).loss.backward()

    def per_sequence() -> None:
        """The loop that people write: a backward pass per sequence, squared and added up."""
        sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for row in tokens:
            model.zero_grad()
            logits = model(input_ids=row[None]).logits[0, :-1]
            F.cross_entropy(logits, row[1:], reduction="sum").backward()
            for name, p in model.named_parameters():
                sums[name] += p.grad.square()

    def engine(estimator: str) -> Any:
        return sequence_fisher(model, data, estimator, batch_size=batch)

    reference: dict[str, Tensor] = {}
    wide = copy.deepcopy(model).double()
    for row in tokens[:2]:
        wide.zero_grad()
        logits = wide(input_ids=row[None]).logits[0, :-1]
        F.cross_entropy(logits, row[1:], reduction="sum").backward()
        for name, p in wide.named_parameters():
            reference[name] = reference.get(name, 0) + p.grad.square() / 2
    del wide
    errors = {"empirical": largest_error(sequence_fisher(model, data[:2], "empirical"), reference)}
    ways = {
        ("this package", "empirical"): partial(engine, "empirical"),
        ("this package", "sampled"): partial(engine, "sampled"),
        ("loop over sequences", "empirical"): per_sequence,
    }
    yield from timed(f"{GPT2}, sequences of {length}", ways, finished(plain), errors, rounds, n)


# --- a step --------------------------------------------------------------------------------------


def step_rows(rounds: int, steps: int = 50) -> Iterator[Row]:
    g = torch.Generator().manual_seed(0)
    for width in (400, 2000):
        x = torch.randn(128, 784, generator=g).to(DEVICE)
        y = torch.randint(10, (128,), generator=g).to(DEVICE)

        def loss(model: nn.Module, x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(model(x), y)

        name = f"MLP 784-{width}-{width}-10, batches of 128"
        yield from step_of(
            name, partial(mlp, 784, [width] * 2, 10, seed=0), loss, rounds, steps, kronecker=True
        )
    tokens = sequences(4, 512)
    yield from step_of(
        f"{GPT2}, 4 sequences of 512",
        gpt2,
        lambda model: model(input_ids=tokens, labels=tokens).loss,
        rounds,
        max(1, steps // 10),
        kronecker=False,
    )


def step_of(
    name: str,
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module], Tensor],
    rounds: int,
    steps: int,
    kronecker: bool,
) -> Iterator[Row]:
    for optimizer in (torch.optim.SGD, torch.optim.Adam):

        def training(
            way: str, curvature: str, optimizer: Callable[..., Any] = optimizer
        ) -> Callable[[], None]:
            model = make().to(DEVICE)
            made = optimizer(model.parameters(), lr=1e-4)
            ewc = EWC(model, 1.0, curvature=curvature)
            ewc.merge(random_importance(ewc))
            if way == "attach":
                ewc.attach(made)

            def run() -> None:
                for _ in range(steps):
                    value = loss(model)
                    if way == "penalty":
                        value = value + ewc.penalty()
                    made.zero_grad()
                    value.backward()
                    if way == "add_gradient_":
                        ewc.add_gradient_()
                    made.step()

            return run

        ways = {
            "attach": ("attach", "diagonal"),
            "add_gradient_": ("add_gradient_", "diagonal"),
            "penalty as loss term": ("penalty", "diagonal"),
        }
        if kronecker:
            ways["attach, Kronecker"] = ("attach", "kronecker")
        plain = finished(training("plain", "diagonal"))
        pairs = {key: (finished(training(*way)), plain) for key, way in ways.items()}
        for way, seconds in paired(pairs, rounds).items():
            yield {
                "model": name,
                "optimizer": optimizer.__name__,
                "way": way,
                "multiple": seconds.multiple(),
                "ms_per_step": 1e3 * seconds.median() / steps,
            }
        del pairs, plain


def random_importance(ewc: EWC) -> dict[str, Tensor]:
    g = torch.Generator(DEVICE).manual_seed(0)
    found = {}
    for name, shape in ewc.shapes().items():
        root = torch.rand(shape, generator=g, device=DEVICE)
        found[name] = 1e-3 * (root @ root.T / len(root) if ":" in name else root)
    return found


# --- a sweep -------------------------------------------------------------------------------------


def sweep_rows(rounds: int, members: list[int], epochs: int = 5) -> Iterator[Row]:
    """Yield the time of sweeps over λ, and how far their members are from single runs."""
    tasks = [task.to(DEVICE) for task in permuted_tasks(2)]
    budget = {"lr": 0.1, "epochs": epochs, "evaluations": 10}

    def alone(lam: float) -> float:
        model = mlp(64, (64, 64), 10, seed=0).to(DEVICE)
        return learn(model, tasks, EWC(model, lam), **budget).accuracy[-1].mean()

    def sweep(members: int) -> Any:
        lambdas = [0.0, *np.logspace(-2, 6, members - 1)]
        options = {"hidden": (64, 64), "device": DEVICE, "progress": False}
        return lambda_sweep(tasks, lambdas, **options, **budget)

    pairs = {m: (finished(partial(sweep, m)), finished(partial(alone, 10.0))) for m in members}
    for count, seconds in paired(pairs, min(rounds, 3)).items():
        found = sweep(count)
        some = range(0, count, count // 8)
        differences = [
            abs(found.average_accuracy[i, 0] - alone(float(found.lambdas[i]))) for i in some
        ]
        yield {
            "members": count,
            "multiple": seconds.multiple(),
            "seconds": seconds.median(),
            "largest_difference": max(differences),
        }


# --- a large model's memory ----------------------------------------------------------------------


def state_rows(rounds: int, steps: int = 3) -> Iterator[Row]:
    """Yield what each form of S and μ takes of GPT-2 in bfloat16, and what a step with it costs."""
    tokens = sequences(1, 512)
    forms: dict[str, Any] = {
        "float32": "diagonal",
        "three bytes": Compact(),
        "three bytes, on the CPU": Compact(device="cpu"),
    }
    for size in ("gpt2", "xl"):
        for form, curvature in forms.items():
            model = gpt2(size).to(torch.bfloat16)
            n = sum(p.numel() for p in model.parameters())
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

            def run(model: nn.Module = model, optimizer: Any = optimizer) -> None:
                for _ in range(steps):
                    optimizer.zero_grad()
                    model(input_ids=tokens, labels=tokens).loss.backward()
                    optimizer.step()

            plain_peak = max(peak_megabytes(run), peak_megabytes(run))
            plain = [seconds_of(run) for _ in range(rounds)]
            before = allocated()
            ewc = EWC(model, 1.0, rule="latest", curvature=copy.deepcopy(curvature))
            ewc.merge(random_importance(ewc))
            kept = allocated() - before
            attached = ewc.attach(optimizer)
            run()
            peak = peak_megabytes(run)
            seconds = [seconds_of(run) for _ in range(rounds)]
            attached.remove()
            yield {
                "model": size,
                "weights": n,
                "form": form,
                "bytes_per_weight": kept / n,
                "step_peak_mb": peak,
                "plain_step_peak_mb": plain_peak,
                "multiple": float(np.median(seconds) / np.median(plain)),
                "ms_per_step": 1e3 * float(np.median(seconds)) / steps,
            }
            del model, optimizer, ewc, attached, run
            torch.cuda.empty_cache()


def seconds_of(function: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def allocated() -> int:
    """Return the bytes that PyTorch holds on the GPU."""
    gc.collect()
    return torch.cuda.memory_allocated() if DEVICE == "cuda" else 0


# --- the table -----------------------------------------------------------------------------------

PARTS = {"fisher": fisher_rows, "step": step_rows, "sweep": sweep_rows, "state": state_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--members", type=int, nargs="+", default=[32, 256, 1000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for part in options.only:
        rows = []
        more = {"members": options.members} if part == "sweep" else {}
        for row in PARTS[part](options.rounds, **more):
            rows.append(row | {"device": NAME, "torch": torch.__version__})
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            table = pd.DataFrame(rows)
            table.to_csv(options.out / f"gpu_{part}.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
