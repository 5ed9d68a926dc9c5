"""Computes differences between rows, and their intervals over few seeds and over resampled images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grcn.evaluation.bootstrap import interval

# Student's t at 97.5 %, where the expansion below is not good to three digits.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}

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
    """Returns the 97.5 % point of Student's t (Abramowitz and Stegun 26.7.5), to three digits."""
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    expansion = sum(term / freedom**power for power, term in enumerate(terms))
    return _STUDENT.get(freedom, expansion)
