"""One thread for every test: the networks are tiny, and threads that wait for each other on a busy
machine cost more than they bring. And no test notes progress in the home of whoever runs it."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
os.environ["EWC_TUTORIAL_PROGRESS"] = "off"
