"""Computes differences between rows, and their intervals over few seeds and over resampled images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grcn.evaluation.bootstrap import interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Difference of a row to its baseline, seed by seed, in percent.

    Attributes:
        values: by seed, for those that both rows have.
        seeds: 95 % interval of the mean over seeds, Student's; None below two seeds.
        images: 95 % interval of the same mean over resampled test images; None if not computed.
    """

    values: Mapping[int, float]
    seeds: Interval | None
    images: Interval | None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def is_shown(self) -> bool | None:
        """Whether both intervals exclude zero, on the same side; None where one is missing."""
        if self.seeds is None or self.images is None:
            return None
        both = (self.seeds, self.images)
        return all(low > 0 for low, _ in both) or all(high < 0 for _, high in both)


def compare(
    row: Mapping[int, float],
    baseline: Mapping[int, float],
    row_draws: Mapping[int, np.ndarray] | None = None,
    baseline_draws: Mapping[int, np.ndarray] | None = None,
) -> Difference | None:
    """Compares two rows in pairs of equal seed; returns None where they share none.

    Args:
        row, baseline: a figure by seed, in percent.
        row_draws, baseline_draws: by seed, the same figure ``[B]`` on resampled images, the same draws in all.
    """
    common = sorted(row.keys() & baseline.keys())
    if not common:
        return None
    values = {seed: row[seed] - baseline[seed] for seed in common}
    images = None
    if row_draws and baseline_draws and all(seed in row_draws and seed in baseline_draws for seed in common):
        means = np.mean([row_draws[seed] - baseline_draws[seed] for seed in common], axis=0)
        images = interval(means)
    return Difference(values, student_interval(list(values.values())), images)


def student_interval(values: Sequence[float]) -> Interval | None:
    """Returns the 95 % interval of the mean of a sample from a normal distribution; None below two values."""
    if len(values) < 2:
        return None
    half = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def student_t(freedom: int) -> float:
    """Returns the 97.5 % point of Student's t, by bisection."""
    low, high = 1.0, 20.0  # it lies between 1.96 and 12.71
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < 0.95 else (low, middle)
    return low


def student_p(values: Sequence[float]) -> float:
    """Returns the two-sided p-value of Student's t test that the mean of ``values``, two or more, is zero."""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if not spread:
        return float(mean == 0)
    return max(0.0, 1 - _student_within(abs(mean) / (spread / math.sqrt(len(values))), len(values) - 1))


def _student_within(t: float, freedom: int) -> float:
    """Returns the probability that Student's t lies within ``-t`` and ``t``.

    It is a finite sum for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * power / (power + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values of a family of tests by Holm's correction (1979), in their order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
