"""Student's t test and Holm's correction of a study's hypotheses."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from grcn.apps.reproduce.statistics import holm, student_interval, student_p


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 10, 31])
def test_the_p_value_is_the_area_beyond_t(count: int) -> None:
    values = list(np.random.default_rng(count).normal(0.6, 1.0, count))
    freedom = count - 1
    t = abs(statistics.fmean(values)) / (statistics.stdev(values) / math.sqrt(count))
    x = np.linspace(0, t, 200_001)
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    within = 2 * ((density[1:] + density[:-1]) / 2 * np.diff(x)).sum()
    assert student_p(values) == pytest.approx(1 - within, abs=1e-8)
    assert student_p([-value for value in values]) == student_p(values)


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_an_interval_that_ends_at_zero_has_a_p_value_of_a_twentieth(count: int) -> None:
    values = np.random.default_rng(count).normal(0.0, 1.0, count)
    low, _ = student_interval(list(values))
    assert student_p(list(values - low)) == pytest.approx(0.05, abs=1e-8)


def test_equal_values_are_certain() -> None:
    assert student_p([2.0, 2.0]) == 0.0 and student_p([0.0, 0.0]) == 1.0


def test_holm_corrects_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []
