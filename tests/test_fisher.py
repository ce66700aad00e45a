import torch
from fisher_oracle import assert_fisher_close, batched_fisher, loop_fisher

from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.models import mlp


def data(n=23, features=6, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=g), torch.randint(classes, (n,), generator=g)


def test_estimators_equal_the_loop():
    x, y = data()
    for dtype in (torch.float32, torch.float64):
        model = mlp(6, [5], 4, seed=1).to(dtype)
        for estimator in ("exact", "empirical", "argmax"):
            for size in (None, 1, 5, 100):
                actual = fisher_diagonal(model, (x.to(dtype), y), estimator, batch_size=size)
                assert_fisher_close(actual, loop_fisher(model, x, y, estimator))
        for size in (1, 7, 23):
            actual = fisher_diagonal(model, (x.to(dtype), y), "batched", batch_size=size)
            assert_fisher_close(actual, batched_fisher(model, x, y, size))
        actual = fisher_diagonal(model, (x.to(dtype), y), "sampled", batch_size=4)
        assert_fisher_close(
            fisher_diagonal(model, (x.to(dtype), y), "sampled", batch_size=9),
            {n: v.double() for n, v in actual.items()},
        )
