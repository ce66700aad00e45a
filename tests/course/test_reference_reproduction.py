"""The textbook functions of notebook 12 against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ewc_tutorial.course import reference


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize("published_se", [0.0, 0.7])
def test_standard_errors_apart_with_the_standard_error_of_scipy(n, published_se):
    values = np.random.default_rng(n).normal(91, 2, n)
    error = math.hypot(stats.sem(values), published_se)
    found = reference.standard_errors_apart(values.tolist(), 90.0, published_se)
    assert found == pytest.approx((values.mean() - 90.0) / error)
    if not published_se:
        assert found == pytest.approx(stats.ttest_1samp(values, 90.0).statistic)


@pytest.mark.parametrize("n", [2, 6, 30])
def test_a_paired_difference_over_its_error_is_scipys_paired_t(n):
    seeds, a, b = np.random.default_rng(n).normal([[5], [1], [0]], 1, (3, n))
    a, b = a + seeds, b + seeds
    mean, error = reference.paired_difference(a.tolist(), b.tolist())
    assert mean == pytest.approx(a.mean() - b.mean())
    assert mean / error == pytest.approx(stats.ttest_rel(a, b).statistic)


def test_a_pair_without_a_partner_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        reference.paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
