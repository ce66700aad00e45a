"""One thread for every test: the networks are tiny, and threads that wait for each other on a busy
machine cost more than they bring. No test notes progress in the home of whoever runs it. Kernels
are forked."""

from __future__ import annotations

import gc
import os

import forked
import pytest
import torch

import make

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that the tests start
os.environ["EWC_TUTORIAL_PROGRESS"] = "off"
forked.start_kernels_by(forked.popen)
# What the tests import and are made of stays to the end. To look through it for what can go takes
# a third of a second, and the Trainer does it after each training.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Else one process would wait for the other's last file.
    items.sort(key=lambda item: item.path.parent.name not in ("notebooks", *make.SLOW_TESTS))


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()
