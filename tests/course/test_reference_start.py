"""The textbook functions of notebook 00 against scikit-learn and their definitions in lists."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score

from ewc_tutorial.course import reference


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (40, 3), (25, 10)])
def test_accuracy_is_scikit_learns(n, classes):
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(n))
    y = logits.argmax(1)
    y[1::3] = (y[1::3] + 1) % classes
    expected = accuracy_score(y.numpy(), logits.numpy().argmax(axis=1))
    assert reference.accuracy(logits, y) == pytest.approx(expected)


def test_a_label_too_few_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        reference.accuracy(torch.eye(3), torch.tensor([0, 1]))


@pytest.mark.parametrize(("n", "pixels"), [(1, 3), (4, 9), (5, 5)])
def test_pixel_j_is_the_originals_pixel_order_j(n, pixels):
    generator = torch.Generator().manual_seed(pixels)
    x = torch.rand(n, pixels, generator=generator)
    order = torch.randperm(pixels, generator=generator)
    untouched = x.tolist()
    expected = [[row[source] for source in order.tolist()] for row in untouched]
    assert reference.permute_pixels(x, order).tolist() == expected
    assert x.tolist() == untouched
