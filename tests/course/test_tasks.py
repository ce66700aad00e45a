"""Tasks: shapes, stratified splits without leakage, reproducibility, and clear errors."""

from __future__ import annotations

import gzip
import http.server
import os
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from ewc_tutorial.course import tasks as tasks_module
from ewc_tutorial.course.tasks import Task, permuted_tasks, pick_dataset, rotated_tasks, split_tasks


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x.flatten(1)}


@pytest.mark.parametrize("make", [permuted_tasks, rotated_tasks, split_tasks])
@pytest.mark.parametrize(("flatten", "shape"), [(True, (64,)), (False, (1, 8, 8))])
def test_tasks_have_the_promised_types_and_shapes(make, flatten, shape):
    for task in make(2, flatten=flatten):
        for part in (task.train, task.test):
            x, y = part.tensors
            assert x.dtype == torch.float32
            assert y.dtype == torch.int64
            assert x.shape[1:] == shape
            assert x.min() >= 0
            assert x.max() <= 1
            assert tuple(y.unique().tolist()) == task.classes
        assert task.in_features == 64


def test_train_and_test_share_no_image_and_together_are_the_data_set():
    digits = load_digits()
    task = permuted_tasks(1)[0]
    train, test = rows(task.train.tensors[0]), rows(task.test.tensors[0])
    assert not train & test
    assert len(task.train) + len(task.test) == len(digits.target)
    assert train | test == rows(torch.tensor(digits.images, dtype=torch.float32) / 16)


def test_no_task_trains_on_an_image_that_another_tests_on():
    for task in permuted_tasks(4):
        labels = permuted_tasks(1)[0].test.tensors[1]
        assert torch.equal(task.test.tensors[1], labels)


def test_splits_are_stratified():
    task = permuted_tasks(1, seed=3)[0]
    train = np.bincount(task.train.tensors[1]) / len(task.train)
    test = np.bincount(task.test.tensors[1]) / len(task.test)
    assert np.abs(train - test).max() < 0.005


def test_the_seed_fixes_everything_and_another_seed_changes_it():
    first, again, other = (permuted_tasks(2, seed=s)[1].train.tensors for s in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_global_random_state_is_untouched():
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    permuted_tasks(3)
    rotated_tasks(2)
    split_tasks(5)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_a_permuted_task_holds_the_same_pixels_in_one_other_order():
    plain, permuted = permuted_tasks(2)
    a, b = plain.train.tensors[0], permuted.train.tensors[0]
    assert torch.equal(a.sort(dim=1).values, b.sort(dim=1).values)
    columns = {column.numpy().tobytes() for column in a.T}
    assert {column.numpy().tobytes() for column in b.T} == columns
    assert not torch.equal(a, b)


def test_a_region_leaves_the_border_alone():
    plain, permuted = (t.train.tensors[0] for t in permuted_tasks(2, region=4, flatten=False))
    same = (plain == permuted).all(dim=0)[0]
    assert same[:2].all()
    assert same[-2:].all()
    assert same[:, :2].all()
    assert not same[2:6, 2:6].all()


def test_rotation_by_a_right_angle_is_a_rotation_of_the_array():
    plain, turned = (t.test.tensors[0] for t in rotated_tasks(2, step=90, flatten=False))
    torch.testing.assert_close(turned, torch.rot90(plain, 1, (2, 3)))


@pytest.mark.parametrize("step", [17.0, 30.0, -120.0])
def test_rotation_is_that_of_torchvision(step):
    functional = pytest.importorskip("torchvision.transforms.functional")
    plain, turned = (t.test.tensors[0] for t in rotated_tasks(2, step=step, flatten=False))
    bilinear = functional.InterpolationMode.BILINEAR
    torch.testing.assert_close(turned, functional.rotate(plain, step, bilinear))


@pytest.mark.parametrize("relabel", [False, True])
def test_split_tasks_divide_the_classes(relabel):
    tasks = split_tasks(5, relabel=relabel)
    assert [t.name for t in tasks] == ["0/1", "2/3", "4/5", "6/7", "8/9"]
    expected = [(0, 1)] * 5 if relabel else [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert [t.classes for t in tasks] == expected
    assert sum(len(t.train) + len(t.test) for t in tasks) == 1797


def test_subsets_have_the_size_asked_for_and_stay_stratified():
    task = permuted_tasks(1, n_train=100, n_test=50)[0]
    assert (len(task.train), len(task.test)) == (100, 50)
    assert np.bincount(task.train.tensors[1]).min() >= 9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: permuted_tasks(0), "n_tasks must be a positive whole number, not 0"),
        (lambda: permuted_tasks(2.5), "n_tasks must be a positive whole number, not 2.5"),
        (lambda: permuted_tasks(2, "cifar"), "dataset must be one of digits, mnist, not 'cifar'"),
        (lambda: permuted_tasks(2, region=9), "region must be between 1 and 8 pixels, not 9"),
        (lambda: permuted_tasks(2, n_train=3), "n_train must be between 10 and 1337"),
        (lambda: split_tasks(3), "n_tasks must divide the ten classes"),
        (lambda: rotated_tasks(2, step=float("nan")), "step must be a finite angle"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_task_refuses_other_types():
    good = TensorDataset(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    bad = TensorDataset(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(TypeError, match="test must hold float32 inputs and int64 labels"):
        Task("A", good, bad, (0,))


# --- MNIST ------------------------------------------------------------------------------------


def write_idx(path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def made_up_mnist(tmp_path_factory):
    """Write files in MNIST's format and full size, with made-up content, once."""
    raw = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 60_000), ("t10k", 10_000)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(n) % 10)
    return raw


@pytest.fixture
def tiny_mnist(made_up_mnist, tmp_path, monkeypatch):
    """Lay the files out in a folder of the test's own: by hard links, so unlink before writing."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in made_up_mnist.iterdir():
        os.link(file, raw / file.name)
    monkeypatch.setenv("EWC_TUTORIAL_DATA", str(tmp_path))
    return raw


def test_mnist_is_read_from_the_folder_of_the_environment_variable(tiny_mnist):
    task = permuted_tasks(1, "mnist", n_train=500, n_test=100)[0]
    assert task.train.tensors[0].shape == (500, 784)
    assert np.bincount(task.train.tensors[1]).tolist() == [50] * 10
    assert pick_dataset("mnist") == "mnist"


@pytest.mark.parametrize("damage", ["truncated", "empty", "compressed", "labels"])
def test_corrupted_mnist_says_so(tiny_mnist, damage):
    kind = "labels-idx1" if damage == "labels" else "images-idx3"
    file = tiny_mnist / f"train-{kind}-ubyte"
    beginning = file.read_bytes()[:100_000]
    file.unlink()
    if damage == "truncated":
        file.write_bytes(beginning)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "compressed":
        file.write_bytes(gzip.compress(b"not what it should be"))
    else:
        write_idx(file, np.full(60_000, 77))
    with pytest.raises(ValueError, match=r"The MNIST files in .* are corrupted"):
        permuted_tasks(1, "mnist")


def test_missing_mnist_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EWC_TUTORIAL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pass download=True"):
        permuted_tasks(1, "mnist")
    assert pick_dataset("mnist") == "digits"
    assert "Using scikit-learn's digits instead" in capsys.readouterr().out


def test_no_network_says_so(tmp_path, monkeypatch):
    from torchvision.datasets import mnist

    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("EWC_TUTORIAL_DATA", str(tmp_path))
    monkeypatch.setattr(mnist, "download_and_extract_archive", offline)
    with pytest.raises(ConnectionError, match=r"could not be downloaded .* use dataset='digits'"):
        permuted_tasks(1, "mnist", download=True)


class Silent:
    """A server that takes every connection and never says a word."""

    def __enter__(self) -> str:
        self._listening = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/"

    def __exit__(self, *_: object) -> None:
        self._listening.close()


class Portal(http.server.BaseHTTPRequestHandler):
    """The page that a hotel's network shows to everybody who has not paid."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Please log in.</html>")

    def log_message(self, *_: object) -> None:
        pass


class Refusing(Portal):
    def do_GET(self):
        self.send_error(403)


@contextmanager
def serving(handler):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    "server", [Silent(), serving(Portal), serving(Refusing)], ids=["silent", "portal", "403"]
)
def test_a_server_that_has_no_mnist_ends_in_a_sentence_and_the_digits(
    server, tmp_path, monkeypatch, capsys
):
    from torchvision.datasets import MNIST

    monkeypatch.setenv("EWC_TUTORIAL_DATA", str(tmp_path))
    monkeypatch.setattr(tasks_module, "PATIENCE", 0.2)
    before = socket.getdefaulttimeout()
    with server as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        start = time.monotonic()
        assert pick_dataset("mnist", download=True) == "digits"
    assert time.monotonic() - start < 20
    assert socket.getdefaulttimeout() == before
    assert "MNIST could not be downloaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [ImportError("libjpeg.so.8"), RuntimeError("no torchvision::nms")]
)
def test_without_torchvision_there_are_the_digits(monkeypatch, capsys, error):
    class Broken:
        def find_spec(self, name, *_):
            if name.partition(".")[0] == "torchvision":
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert pick_dataset("mnist") == "digits"
    assert f"torchvision, which cannot be imported ({error})" in capsys.readouterr().out
    for make in (permuted_tasks, rotated_tasks, split_tasks):
        assert len(make(2, n_train=50, n_test=50)) == 2
    with pytest.raises(ImportError, match="use dataset='digits'"):
        permuted_tasks(1, "mnist")


def test_without_the_variable_the_cache_is_the_data_folder_of_the_checkout(monkeypatch):
    monkeypatch.delenv("EWC_TUTORIAL_DATA", raising=False)
    folder = tasks_module.data_folder()
    assert folder.name == "data"
    assert (folder / "README.md").exists()
