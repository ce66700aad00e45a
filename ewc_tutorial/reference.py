"""The textbook versions: slow, short, obviously right.

Each is the answer to an exercise of the course (``reveal`` shows its source) and an oracle for the
tests of the fast version elsewhere in the package. They are in the order of the course. Networks
take inputs ``x`` ``(N, …)`` to logits ``(N, C)``; labels ``y`` are ``(N,)``; a gradient or a
Fisher diagonal is a dict with one tensor per parameter name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# --- 00 Start here --------------------------------------------------------------------------

# --- 01 From Bayes to Fisher ----------------------------------------------------------------

# --- 02 Squared gradients -------------------------------------------------------------------

# --- 03 The penalty term --------------------------------------------------------------------

# --- 04 Forgetting curves -------------------------------------------------------------------
