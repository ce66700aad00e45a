"""Sequences of classification tasks, made from the handwritten digits of scikit-learn or MNIST.

All tasks of a sequence share one stratified split, so an image that one task tests on is never
trained on by another.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import TensorDataset

DATASETS = ("digits", "mnist")
#: Seconds that a server of MNIST may be silent before it is given up.
PATIENCE = 20.0
MNIST_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True, eq=False)
class Task:
    """One classification task.

    Attributes:
        name: what plots and tables call it.
        train: float32 inputs ``(N, D)`` or ``(N, C, H, W)`` and int64 labels ``(N,)``;
            ``len(task.train)`` is N, ``task.train.tensors`` the pair.
        test: the same, of images that no task of the sequence trains on.
        classes: the labels that occur, ascending.

    Raises:
        TypeError: inputs that are not float32, or labels that are not int64.
    """

    name: str
    train: TensorDataset
    test: TensorDataset
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, part).tensors
            if x.dtype != torch.float32 or y.dtype != torch.int64:
                raise TypeError(
                    f"{part} must hold float32 inputs and int64 labels, not {x.dtype} "
                    f"and {y.dtype}."
                )

    def to(self, device: torch.device | str) -> Task:
        """Return the task with its tensors on ``device``."""
        train, test = (
            TensorDataset(*(t.to(device) for t in part.tensors)) for part in (self.train, self.test)
        )
        return Task(self.name, train, test, self.classes)

    @property
    def in_features(self) -> int:
        """Number of values in one input: D, or C·H·W."""
        return self.train.tensors[0][0].numel()


def joined(tasks: Sequence[Task], part: str) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of all tasks, one after the other; ``part`` is train or test."""
    pairs = zip(*(getattr(task, part).tensors for task in tasks), strict=True)
    x, y = (torch.cat(parts) for parts in pairs)
    return x, y


@dataclass(frozen=True, eq=False)
class _Images:
    """Square grey images ``(N, 1, H, W)`` in [0, 1] with labels, split into train and test."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def side(self) -> int:
        return self.x_train.shape[-1]

    def task(
        self, name: str, view: Callable[[Tensor], Tensor] = lambda x: x, flatten: bool = True
    ) -> Task:
        def part(x: Tensor, y: Tensor) -> TensorDataset:
            x = view(x)
            return TensorDataset(x.flatten(1) if flatten else x, y)

        classes = tuple(self.y_train.unique().tolist())
        return Task(name, part(self.x_train, self.y_train), part(self.x_test, self.y_test), classes)


def permuted_tasks(
    n_tasks: int,
    dataset: str = "digits",
    seed: int = 0,
    *,
    region: int | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    flatten: bool = True,
    download: bool = False,
) -> list[Task]:
    """Make tasks that show the same images with their pixels in another fixed order each.

    The first task shows the images as they are. Every task has the same difficulty for a fully
    connected network, which makes this the standard test of forgetting (Goodfellow et al. 2013).

    Args:
        n_tasks: number of tasks.
        dataset: ``"digits"`` (1,797 images of 8×8, always there) or ``"mnist"`` (28×28).
        seed: fixes the split and the permutations.
        region: side in pixels of the central square that is permuted; ``None`` permutes all.
        n_train, n_test: use a stratified subset of this many images; ``None`` uses all.
        flatten: inputs ``(N, D)`` if true, ``(N, 1, H, W)`` if not.
        download: fetch MNIST if it is missing.

    Raises:
        ValueError: a number is out of range, the data set unknown or its files corrupted.
        FileNotFoundError: MNIST is missing and ``download`` is false.
        ConnectionError: MNIST could not be downloaded.
        ImportError: MNIST was asked for, and torchvision, which reads it, cannot be imported.
    """
    _check_count("n_tasks", n_tasks)
    images = _load(dataset, seed, n_train, n_test, download)
    side = images.side
    region = side if region is None else region
    if not 1 <= region <= side:
        raise ValueError(f"region must be between 1 and {side} pixels, not {region!r}.")
    edge = (side - region) // 2
    square = torch.arange(side * side).view(side, side)
    square = square[edge : edge + region, edge : edge + region].flatten()
    generator = torch.Generator().manual_seed(seed)

    def permute_by(order: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: x.flatten(1)[:, order].view_as(x)

    tasks = []
    for index in range(n_tasks):
        order = torch.arange(side * side)
        if index:
            shuffled = torch.randperm(len(square), generator=generator)
            order[square] = square[shuffled]
        tasks.append(images.task(_letter(index), permute_by(order), flatten))
    return tasks


def rotated_tasks(
    n_tasks: int,
    dataset: str = "digits",
    seed: int = 0,
    *,
    step: float = 30.0,
    n_train: int | None = None,
    n_test: int | None = None,
    flatten: bool = True,
    download: bool = False,
) -> list[Task]:
    """Make tasks that show the same images turned by 0, ``step``, 2 ``step`` … degrees.

    Unlike permuted tasks these resemble each other, so that knowledge can also be transferred.
    The other arguments and errors are those of :func:`permuted_tasks`.
    """
    _check_count("n_tasks", n_tasks)
    if not np.isfinite(step):
        raise ValueError(f"step must be a finite angle in degrees, not {step!r}.")
    images = _load(dataset, seed, n_train, n_test, download)

    def rotate_by(angle: float) -> Callable[[Tensor], Tensor]:
        return lambda x: _turned(x, angle) if angle % 360 else x

    return [
        images.task(f"{_letter(i)} ({step * i:g}°)", rotate_by(step * i), flatten)
        for i in range(n_tasks)
    ]


def split_tasks(
    n_tasks: int = 5,
    dataset: str = "digits",
    seed: int = 0,
    *,
    relabel: bool = False,
    order: Sequence[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    flatten: bool = True,
    download: bool = False,
) -> list[Task]:
    """Make tasks of different classes: with five tasks 0/1, 2/3, 4/5, 6/7, 8/9.

    Args:
        n_tasks: must divide the ten classes: 1, 2, 5 or 10.
        relabel: number the classes of each task from 0 (task- and domain-incremental learning);
            otherwise the digits keep their labels (class-incremental learning).
        order: the ten digits in the order in which they come; their labels are then their places
            in it. ``None`` is 0 to 9.

    The other arguments and errors are those of :func:`permuted_tasks`.
    """
    _check_count("n_tasks", n_tasks)
    if 10 % n_tasks:
        raise ValueError(f"n_tasks must divide the ten classes (1, 2, 5 or 10), not {n_tasks}.")
    order = list(range(10) if order is None else order)
    if sorted(order) != list(range(10)):
        raise ValueError(f"order must hold each of the digits 0 to 9 once, not {order!r}.")
    images = _load(dataset, seed, n_train, n_test, download)
    place = torch.tensor(order).argsort()
    images = replace(images, y_train=place[images.y_train], y_test=place[images.y_test])
    size = 10 // n_tasks
    tasks = []
    for first in range(0, 10, size):
        shift = first if relabel else 0

        def part(
            x: Tensor, y: Tensor, first: int = first, shift: int = shift
        ) -> tuple[Tensor, Tensor]:
            kept = (y >= first) & (y < first + size)
            return x[kept], y[kept] - shift

        subset = _Images(*part(images.x_train, images.y_train), *part(images.x_test, images.y_test))
        tasks.append(subset.task("/".join(map(str, order[first : first + size])), flatten=flatten))
    return tasks


def pick_dataset(prefer: str = "mnist", download: bool = False) -> str:
    """Return ``prefer`` if it can be loaded, else say why not and return ``"digits"``.

    This is how a notebook uses MNIST where it is and still runs where it is not.
    """
    try:
        _load(prefer, seed=0, n_train=None, n_test=None, download=download)
    except (FileNotFoundError, ConnectionError, ImportError) as error:
        print(f"{error}\nUsing scikit-learn's digits instead.")
        return "digits"
    return prefer


def data_folder() -> Path:
    """Return the folder of the data cache.

    It is the environment variable ``EWC_TUTORIAL_DATA`` if set, else ``data/`` of the checkout,
    else (the package was installed without one) ``~/.cache/ewc_tutorial``.
    """
    if folder := os.environ.get("EWC_TUTORIAL_DATA"):
        return Path(folder).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / "data"
    return Path.home() / ".cache" / "ewc_tutorial"


def _turned(x: Tensor, degrees: float) -> Tensor:
    """Return square images ``(N, C, H, H)`` turned to the left about their middle, bilinearly."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    where = x.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(x), 2, 3)
    grid = affine_grid(where, list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"T{index + 1}"


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}.")


def _load(
    dataset: str, seed: int, n_train: int | None, n_test: int | None, download: bool
) -> _Images:
    if dataset == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        y = torch.tensor(digits.target, dtype=torch.int64)
        train, test = train_test_split(
            np.arange(len(y)), test_size=0.25, stratify=digits.target, random_state=seed
        )
        images = _Images(x[train], y[train], x[test], y[test])
    elif dataset == "mnist":
        images = _load_mnist(download)
    else:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, not {dataset!r}.")
    x_train, y_train = _subset("n_train", images.x_train, images.y_train, n_train, seed)
    x_test, y_test = _subset("n_test", images.x_test, images.y_test, n_test, seed)
    return _Images(x_train, y_train, x_test, y_test)


def _subset(name: str, x: Tensor, y: Tensor, size: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return a stratified subset of ``size`` samples, in random order."""
    if size is None or size == len(y):
        return x, y
    from sklearn.model_selection import train_test_split

    n_classes = len(y.unique())
    # scikit-learn's stratified split needs one sample a class on either side.
    if not n_classes <= size <= len(y) - n_classes:
        raise ValueError(
            f"{name} must be between {n_classes} and {len(y) - n_classes}, or {len(y)} for all, "
            f"not {size!r}."
        )
    kept, _ = train_test_split(np.arange(len(y)), train_size=size, stratify=y, random_state=seed)
    return x[kept], y[kept]


def _load_mnist(download: bool) -> _Images:
    try:
        from torchvision.datasets import MNIST
    except Exception as broken:  # built for another PyTorch it raises many things
        raise ImportError(
            f"MNIST is read through torchvision, which cannot be imported ({broken}): install the "
            "torchvision that belongs to this PyTorch, or use dataset='digits', which needs none."
        ) from broken

    folder = data_folder()
    files = [folder / "MNIST" / "raw" / name for name in MNIST_FILES]
    if missing := [file.name for file in files if not file.exists()]:
        if not download:
            raise FileNotFoundError(
                f"MNIST is not in {folder} (no {missing[0]}): put its four raw files into "
                f"{files[0].parent}, set EWC_TUTORIAL_DATA to the folder that has MNIST/raw, or "
                "pass download=True."
            )
        try:
            with _limited_patience(PATIENCE):
                MNIST(str(folder), download=True)
        except (RuntimeError, OSError) as failed:
            raise ConnectionError(
                f"MNIST could not be downloaded to {folder} ({failed}): connect to a network, "
                "or use dataset='digits', which needs none."
            ) from failed
    try:
        parts = [MNIST(str(folder), train=train) for train in (True, False)]
    except (RuntimeError, ValueError, AssertionError, OSError, LookupError) as damaged:
        raise _corrupted(folder, str(damaged)) from damaged
    tensors = []
    for part, size in zip(parts, (60_000, 10_000), strict=True):
        x, y = part.data, part.targets
        if x.shape != (size, 28, 28) or y.shape != (size,) or not 0 <= y.min() <= y.max() <= 9:
            raise _corrupted(folder, f"images {tuple(x.shape)}, labels {tuple(y.shape)}")
        tensors += [x.unsqueeze(1).float() / 255, y.long()]
    return _Images(*tensors)


@contextmanager
def _limited_patience(seconds: float) -> Iterator[None]:
    """Let no read from the network wait for longer; torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _corrupted(folder: Path, why: str) -> ValueError:
    return ValueError(
        f"The MNIST files in {folder / 'MNIST' / 'raw'} are corrupted ({why}): delete them and "
        "pass download=True."
    )
