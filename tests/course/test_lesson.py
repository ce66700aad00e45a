"""How lessons print what only its size counts of."""

from __future__ import annotations

import pytest
import torch

from ewc_tutorial.course import below


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-9, "below 1e-06"),
        (-3e-9, "below 1e-06"),
        (0.0, "below 1e-06"),
        (0.0312, "0.031"),
        (-2.0, "-2"),
        (float("nan"), "nan"),
        (torch.tensor(1e-7, dtype=torch.float64), "below 1e-06"),
        (torch.tensor(1e-7, requires_grad=True), "below 1e-06"),
    ],
)
def test_what_is_below_its_bound_repeats_on_every_machine(value, text, recwarn):
    assert below(value, 1e-6) == text
    assert not recwarn
