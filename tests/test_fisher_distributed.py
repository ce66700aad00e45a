"""Two processes with a share of the data each hold the Fisher information of all of it."""

from __future__ import annotations

import copy
import os

import forked
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fisher_oracle import assert_fisher_close
from kronecker_oracle import eigenblock

from ewc_tutorial import EWC
from ewc_tutorial.course.models import mlp
from ewc_tutorial.fisher import fisher_diagonal, fisher_factors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed"),
]

SHARES = (slice(0, 17), slice(17, 23))
LAYERS = {"0.weight": "0.bias", "2.weight": None}


def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(23, 6, generator=g), torch.randint(4, (23,), generator=g)


def consolidated(model, data):
    """Return the penalty of a Kronecker EWC, away from its anchor."""
    model = copy.deepcopy(model)
    ewc = EWC(model, curvature="kronecker")
    ewc.consolidate(data)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return ewc.penalty().item()


def block_of(found, weight):
    return eigenblock(*(found[f"{weight}:{kind}"] for kind in ("UA", "UG", "E")), bias=False)


def run_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(SHARES)
    )
    model, (x, y) = mlp(6, [5], 4, seed=1), data()
    share, nothing = (x[SHARES[rank]], y[SHARES[rank]]), (x[:0], y[:0])
    results = {
        "exact": fisher_diagonal(model, share),
        "empirical": fisher_diagonal(model, share, "empirical", batch_size=5),
        "one has nothing": fisher_diagonal(model, nothing if rank else (x, y)),
        "alone": fisher_diagonal(model, share, distributed=False),
        "factors": fisher_factors(model, share, LAYERS),
        "one has no factors": fisher_factors(model, nothing if rank else (x, y), LAYERS),
        "consolidated": consolidated(model, share),
        "exact factors": fisher_factors(model, share, LAYERS, eigenvalues="exact"),
        "wrapped": fisher_diagonal(torch.nn.parallel.DistributedDataParallel(model), share),
    }
    with pytest.raises(ValueError, match="empty"):
        fisher_diagonal(model, nothing)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # the threads of torch.distributed now and then abort a process that winds down


def test_two_processes(tmp_path):
    mp.start_processes(
        run_process, args=(tmp_path,), nprocs=len(SHARES), start_method=forked.METHOD
    )
    model, (x, y) = mlp(6, [5], 4, seed=1), data()

    def expected(estimator="exact", part=slice(None)):
        fisher = fisher_diagonal(model, (x[part], y[part]), estimator)
        return {name: value.double() for name, value in fisher.items()}

    for rank, part in enumerate(SHARES):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert_fisher_close(results["exact"], expected())
        assert_fisher_close(results["empirical"], expected("empirical"))
        assert_fisher_close(results["one has nothing"], expected())
        assert_fisher_close(results["alone"], expected(part=part))
        factors = fisher_factors(model, (x, y), LAYERS)
        factors = {n: v.double() for n, v in factors.items()}
        assert_fisher_close(results["factors"], factors)
        assert_fisher_close(results["one has no factors"], factors)
        assert results["consolidated"] == pytest.approx(consolidated(model, (x, y)), rel=1e-5)
        exact = fisher_factors(model, (x, y), LAYERS, eigenvalues="exact")
        for weight in LAYERS:
            # Other rounding may turn a vector around, which no square and no product shows.
            assert_fisher_close(
                {"S": block_of(results["exact factors"], weight)},
                {"S": block_of(exact, weight)},
                1e-5,
            )
        wrapped = {name.removeprefix("module."): v for name, v in results["wrapped"].items()}
        assert_fisher_close(wrapped, expected())
