"""One thread for every test: the networks are tiny, and threads that wait for each other on a busy
machine cost more than they bring."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
