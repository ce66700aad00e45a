"""What a sweep over λ found, as arrays; saved and loaded without pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ewc_tutorial.files import replacing

if TYPE_CHECKING:
    import pandas as pd

#: The arrays whose first two axes are λ and seed.
MEMBER_ARRAYS = (
    "curves",
    "drift",
    "fisher_drift",
    "important_move",
    "unimportant_move",
)


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Curves and drifts of L values of λ, S seeds and T tasks, evaluated at E moments.

    Attributes:
        lambdas: ``(L,)`` ascending.
        seeds: ``(S,)``.
        tasks: names of the tasks.
        n_train: ``(T,)`` number of training samples of each.
        steps: ``(E,)`` training steps taken so far, over all tasks; starts at 0.
        boundaries: ``(T,)`` the step at which each task's training ended.
        curves: ``(L, S, E, T)`` test accuracy on every task, those still to come included.
        drift: ``(L, S, T, layers)``: ‖W − W_A‖ / ‖W_A‖ per layer after each task, where W_A are the
            layer's weights after the first one.
        fisher_drift: ``(L, S, T)``: Σ_i F_i (θ_i − θ_A,i)² over all weights, F that of the first
            task: how far they moved as task A sees it.
        important_move, unimportant_move: ``(L, S, T)`` root mean square of θ − θ_A over the tenth
            of the weights with the largest F, and over the others.
        settings: what else the sweep was run with.
        interpolated: true if no network was trained at these λ: see :meth:`at`.
    """

    lambdas: NDArray[np.float64]
    seeds: NDArray[np.int64]
    tasks: tuple[str, ...]
    n_train: NDArray[np.int64]
    steps: NDArray[np.int64]
    boundaries: NDArray[np.int64]
    curves: NDArray[np.float64]
    drift: NDArray[np.float64]
    fisher_drift: NDArray[np.float64]
    important_move: NDArray[np.float64]
    unimportant_move: NDArray[np.float64]
    settings: dict[str, Any] = field(default_factory=dict)
    interpolated: bool = False

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """``(L, S, T, T)``, the accuracy matrix R[i, j] of each member."""
        return self.curves[..., np.searchsorted(self.steps, self.boundaries), :]

    @property
    def average_accuracy(self) -> NDArray[np.float64]:
        """``(L, S)`` mean accuracy over all tasks after the last one."""
        return self.accuracy[:, :, -1].mean(axis=-1)

    @property
    def old_accuracy(self) -> NDArray[np.float64]:
        """``(L, S)`` mean final accuracy on all tasks but the last; NaN for one task."""
        earlier = self.accuracy[:, :, -1, :-1]
        return earlier.mean(axis=-1) if earlier.size else np.full(earlier.shape[:2], np.nan)

    @property
    def new_accuracy(self) -> NDArray[np.float64]:
        """``(L, S)`` final accuracy on the last task."""
        return self.accuracy[:, :, -1, -1]

    @property
    def best_lambda(self) -> float:
        """The λ with the highest average accuracy, mean over the seeds."""
        return float(self.lambdas[self.average_accuracy.mean(axis=1).argmax()])

    @property
    def bayes_lambda(self) -> float:
        """N_A / N_B, the λ that Bayes' rule gives for the second task."""
        return float(self.n_train[0] / self.n_train[min(1, len(self.n_train) - 1)])

    def at(self, lam: float) -> SweepResult:
        """Return the result at one λ: trained if it is on the grid, else interpolated.

        Between two trained values everything is interpolated linearly in log λ (in λ between 0 and
        the smallest positive one), and ``interpolated`` of what is returned says so.

        Raises:
            ValueError: λ lies outside the grid.
        """
        grid = self.lambdas
        if not grid[0] <= lam <= grid[-1]:
            raise ValueError(f"lam must be between {grid[0]:g} and {grid[-1]:g}, not {lam!r}.")
        right = int(np.searchsorted(grid, lam))
        if grid[right] == lam:
            return replace(self, lambdas=grid[[right]], **self._members(lambda a: a[[right]]))
        low, high = grid[right - 1], grid[right]
        t = (np.log(lam) - np.log(low)) / (np.log(high) - np.log(low)) if low > 0 else lam / high
        between = self._members(lambda a: (1 - t) * a[[right - 1]] + t * a[[right]])
        return replace(self, lambdas=np.array([lam]), interpolated=True, **between)

    def to_frame(self) -> pd.DataFrame:
        """Return the curves as a tidy table: lam, seed, step, task, accuracy and seen."""
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [self.lambdas, self.seeds, self.steps, self.tasks],
            names=["lam", "seed", "step", "task"],
        )
        frame = pd.DataFrame({"accuracy": self.curves.ravel()}, index=index).reset_index()
        starts = dict(zip(self.tasks, [0, *self.boundaries[:-1]], strict=True))
        frame["seen"] = frame["step"] > frame["task"].map(starts)
        return frame

    def save(self, path: str | Path) -> None:
        """Write everything to one ``.npz`` file, whole or not at all."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays["settings"] = json.dumps(self.settings)
        with replacing(Path(path)) as file:
            np.savez_compressed(file, **{k: np.asarray(v) for k, v in arrays.items()})

    @classmethod
    def load(cls, path: str | Path) -> SweepResult:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not the file of a sweep.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {f.name: file[f.name] for f in fields(cls)}
                if "accuracy" in file:  # a file of version 0.1, with tasks before evaluations
                    arrays["curves"] = arrays["curves"].swapaxes(-1, -2)
        except (KeyError, ValueError, EOFError, OSError, BadZipFile) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path} does not hold a sweep over λ ({error}).") from error
        arrays["settings"] = json.loads(str(arrays["settings"]))
        arrays["tasks"] = tuple(arrays["tasks"].tolist())
        arrays["interpolated"] = bool(arrays["interpolated"])
        return cls(**arrays)

    @classmethod
    def merged(cls, shards: Sequence[SweepResult]) -> SweepResult:
        """Join shards that cover a grid of λ and seeds, each pair once."""
        lambdas = np.unique(np.concatenate([shard.lambdas for shard in shards]))
        seeds = np.unique(np.concatenate([shard.seeds for shard in shards]))
        whole = {
            name: np.full((len(lambdas), len(seeds), *getattr(shards[0], name).shape[2:]), np.nan)
            for name in MEMBER_ARRAYS
        }
        for shard in shards:
            place = np.ix_(
                np.searchsorted(lambdas, shard.lambdas), np.searchsorted(seeds, shard.seeds)
            )
            for name, array in whole.items():
                array[place] = getattr(shard, name)
        return replace(shards[0], lambdas=lambdas, seeds=seeds, **whole)

    def _members(self, change: Any) -> dict[str, NDArray[np.float64]]:
        return {name: change(getattr(self, name)) for name in MEMBER_ARRAYS}
