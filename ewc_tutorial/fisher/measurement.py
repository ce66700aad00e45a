"""How a Fisher information is measured: one pass over batches, or two, and their sums.

What is called from outside is in ``diagonal.py``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from ewc_tutorial.fisher.closed_forms.factors import eigenvectors
from ewc_tutorial.fisher.engine import Engine, check_model
from ewc_tutorial.fisher.inputs import Inputs, apply
from ewc_tutorial.fisher.inputs import n_samples as rows_of
from ewc_tutorial.fisher.likelihoods import ESTIMATORS
from ewc_tutorial.fisher.likelihoods.base import Draws, Likelihood, Seeds
from ewc_tutorial.fisher.per_sample import run
from ewc_tutorial.fisher.probe import PROBE_SIZE
from ewc_tutorial.fisher.samples import Batch, Samples, make_samples
from ewc_tutorial.fisher.saved import Saved, checksum, described, fingerprint
from ewc_tutorial.fisher.undisturbed import undisturbed
from ewc_tutorial.precision import widest
from ewc_tutorial.randomness import as_generator
from ewc_tutorial.sharded import check_known, gathered, spread_as_before, was_spread

#: The batch that ``batched`` averages over, where the data has no batches of its own.
DEFAULT_BATCH = 32
#: What is told of the progress: samples done, and samples in all, if that is known.
Progress = Callable[[int, int | None], object]
#: Backward passes per batch from which on ``exact`` warns.
MANY_PASSES = 1000


def measured(
    model: nn.Module,
    data: Any,
    estimator: str,
    layers: Mapping[str, str | None],
    n_samples: int | None,
    batch_size: int | None,
    rule: Likelihood,
    generator: torch.Generator | int | None,
    progress: bool | Progress,
    distributed: bool,
    transposed: Collection[str] = (),
    rotate: bool = False,
    resume: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Return what :func:`fisher_diagonal` and :func:`fisher_factors` return."""
    check_choice("estimator", estimator, ESTIMATORS)
    check_count("n_samples", n_samples)
    check_count("batch_size", batch_size)
    generator = as_generator(generator)
    # What is wrong if the outputs of every batch are like those of the batches so far.
    doubt: str | bool | None = True
    with engine_for(model, layers, transposed) as (engine, prefix):
        if not distributed and any(map(was_spread, engine.parameters.values())):
            raise ValueError(
                "distributed must be True for weights that are spread over processes: each would "
                "keep a part of another Fisher information."
            )
        samples = make_samples(data, n_samples, generator)
        again = samples.repeatable() if rotate else lambda: samples
        before_draws = generator.get_state()

        def one_pass() -> dict[str, Tensor]:
            nonlocal doubt
            samples, draws = again(), Draws(generator)
            head = samples.head(PROBE_SIZE) if resume is not None else None
            batches = _batches(samples, engine, estimator, batch_size)

            def seeds(outputs: Tensor, y: Tensor | None) -> Seeds:
                nonlocal doubt
                made = rule.seeds(estimator, outputs, y, draws)
                _warn_of_many_passes(len(made))
                doubt = doubt and rule.doubt(outputs, y)
                if doubt and len(outputs) > 1:
                    raise ValueError(doubt)
                return made

            step = _squared_batch_mean if estimator == "batched" else Engine.squares
            sums, count = _zeros(engine), 0
            saved = None
            if resume is not None:
                options = (estimator, described(rule), n_samples, batch_size)
                start = checksum(before_draws) if estimator == "sampled" else None
                key = (*options, start, fingerprint(engine.model, head), tuple(sums))
                saved = Saved(resume, sums, draws, repr(key))
                doubt = saved.doubt
            for batch in _with_progress(batches, samples, progress):
                count += rows_of(batch[0])
                if saved is not None and saved.has(count, rows_of(batch[0])):
                    continue
                _add(sums, engine, batch, step, seeds)
                if saved is not None:
                    saved.save(count, doubt)
            if saved is not None:
                saved.save(count, doubt, at_once=True)
            if distributed:
                count = _sum_over_processes(sums, count)
            if not count:
                raise ValueError("data must have at least one sample, but it is empty.")
            if isinstance(doubt, str):  # True: this process has met no sample
                raise ValueError(doubt)
            found = {}
            for name, (_, dtype) in engine.results.items():
                # One after the other, so that there is no second copy of them all.
                mean = _finished(prefix + name, sums.pop(name) / count, dtype)
                parameter = engine.parameters.get(name, mean)
                found[name] = spread_as_before(mean, parameter)
            return found

        found = one_pass()
        if rotate and engine.layers:
            bases = {
                f"{name}:U{side}": eigenvectors(found[f"{name}:{side}"])[1]
                for name in engine.layers
                for side in "AG"
            }
            if distributed:
                _same_everywhere(bases)
            engine.bases = {n: (bases[f"{n}:UA"], bases[f"{n}:UG"]) for n in engine.layers}
            generator.set_state(before_draws)
            found |= bases | one_pass()
        return {prefix + name: value for name, value in found.items()}


@contextmanager
def engine_for(
    model: nn.Module,
    layers: Mapping[str, str | None] | None = None,
    transposed: Collection[str] = (),
) -> Iterator[tuple[Engine, str]]:
    """Yield an engine for the trainable parameters, and what wrappers put before their names."""
    model, prefix = _unwrapped(model)
    check_known(model)
    check_model(model)
    inside = {
        weight.removeprefix(prefix): bias and bias.removeprefix(prefix)
        for weight, bias in (layers or {}).items()
    }
    turned = {name.removeprefix(prefix) for name in transposed}
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not names:
        raise ValueError("model must have at least one trainable parameter, but it has none.")
    with gathered(model), undisturbed(model), Engine(model, names, inside, turned) as engine:
        yield engine, prefix


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the module inside wrappers that only run it: they would hide its layers' calls."""
    prefix = ""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = "module"
        elif hasattr(model, "_orig_mod"):  # torch.compile
            inner = "_orig_mod"
        else:
            return model, prefix
        model, prefix = getattr(model, inner), f"{prefix}{inner}."


def _add(
    sums: dict[str, Tensor],
    engine: Engine,
    batch: Batch,
    step: Callable[[Engine, Inputs, Callable[[Tensor], Seeds]], dict[str, Tensor]],
    make_seeds: Callable[[Tensor, Tensor | None], Seeds],
) -> None:
    """Add a batch's squares to the sums."""
    x, y = to_device(batch, engine.device)
    squares = step(engine, x, _with_labels(make_seeds, y))
    for name in list(squares):
        sums[name] += squares.pop(name)  # freed at once


def _with_labels(
    make_seeds: Callable[[Tensor, Tensor | None], Seeds], y: Tensor | None
) -> Callable[[Tensor], Seeds]:
    return lambda outputs: make_seeds(outputs, y)


def _batches(
    samples: Samples, engine: Engine, estimator: str, batch_size: int | None
) -> Iterator[Batch]:
    if estimator == "batched":
        size = batch_size or (None if samples.own_batches else DEFAULT_BATCH)
        return samples.batches(size, merge=True)
    head = samples.head(PROBE_SIZE)
    if head is None:
        return iter(())
    engine.prepare(to_device(head, engine.device)[0])
    return samples.batches(batch_size or engine.batch_size(many_passes=estimator == "exact"))


def _with_progress(
    batches: Iterator[Batch], samples: Samples, progress: bool | Progress
) -> Iterator[Batch]:
    if not progress:
        yield from batches
        return
    if callable(progress):
        done = 0
        for batch in batches:
            yield batch
            done += rows_of(batch[0])
            progress(done, samples.total)
        return
    from tqdm.auto import tqdm

    # Short runs show no bar: it appears after a second.
    with tqdm(total=samples.total, desc="Fisher information", unit="samples", delay=1.0) as bar:
        for batch in batches:
            yield batch
            bar.update(rows_of(batch[0]))


def to_device(batch: Batch, device: torch.device) -> Batch:
    def moved(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, non_blocking=True)
        # Autograd cannot keep tensors that were made in inference mode.
        return tensor.clone() if tensor.is_inference() else tensor

    x, y = batch
    return apply(moved, x), None if y is None else moved(y)


def _warn_of_many_passes(passes: int) -> None:
    if passes > MANY_PASSES:
        warnings.warn(
            f"estimator 'exact' needs {passes:,} backward passes per batch here, one for each "
            "class and output: 'sampled' estimates the same in one.",
            stacklevel=2,
        )


def _zeros(engine: Engine) -> dict[str, Tensor]:
    """Return the sums at their start, so wide that no error grows with the samples."""
    return {
        name: torch.zeros(shape, dtype=widest(engine.device), device=engine.device)
        for name, (shape, _) in engine.results.items()
    }


def _squared_batch_mean(
    engine: Engine, x: Inputs, make_seeds: Callable[[Tensor], Seeds]
) -> dict[str, Tensor]:
    """Return the squared mean gradient of one batch, times its number of samples."""
    outputs = run(engine.model, x)
    (seed,) = make_seeds(outputs.detach())
    parameters = list(engine.parameters.values())
    batch = len(outputs)
    gradients = torch.autograd.grad(outputs, parameters, seed / batch, materialize_grads=True)
    dense = (g.to_dense() if g.is_sparse else g for g in gradients)
    return {n: g.square() * batch for n, g in zip(engine.parameters, dense, strict=True)}


def _several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _same_everywhere(bases: dict[str, Tensor]) -> None:
    """Make the eigenvectors of the first process those of all: others may turn out otherwise."""
    if _several_processes():
        for vectors in bases.values():
            torch.distributed.broadcast(vectors, src=0)


def _sum_over_processes(sums: dict[str, Tensor], count: int) -> int:
    """Add up sums and count over all processes, if there are several."""
    if not _several_processes():
        return count
    # The backend may not know other devices than the model's.
    total = torch.tensor(count, device=next(iter(sums.values())).device)
    for tensor in (total, *sums.values()):
        torch.distributed.all_reduce(tensor)
    return int(total)


def _finished(name: str, mean: Tensor, dtype: torch.dtype) -> Tensor:
    result = mean.to(dtype)
    if result.isfinite().all():
        return result
    raise ValueError(
        f"the Fisher information of parameter {name!r} is not finite: look for NaN or infinity in "
        "the data and the weights."
    )


def check_choice(argument: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, not {value!r}.")


def check_count(argument: str, value: int | None, optional: bool = True) -> None:
    """Raise TypeError or ValueError unless it is a whole number above zero, or an optional None."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        wanted = "a whole number or None" if optional else "a whole number"
        raise TypeError(f"{argument} must be {wanted}, not {value!r}.")
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, not {value!r}.")
