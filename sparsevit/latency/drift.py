"""Drift out of a series of timings: what the machine's own ups and downs, and not a configuration, made of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

REACH = 4
"""Samples before and after one, over which the machine's pace is taken to be constant."""

PASSES = 6
Z = 1.96
"""Standard deviations of a normal distribution that hold 95 %."""


def without_drift(which: NDArray[np.int64], ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Timings at the pace that the machine had in the median, same shape.

    A sample is its configuration's latency times the machine's pace times noise. The pace is the median of how
    the samples around (not the sample itself, or noise would pass for pace) compare with their own configurations'
    medians. Alternating between the two converges, as configurations were run in shuffled order. The anchor's median
    stays what it was.

    Args:
        which: the configuration of each sample in order of time, shape `(N,)`; 0 is the anchor.
        ms: what the clock said, shape `(N,)`.
    """
    logs = np.log(ms)
    anchor = which == 0
    flat = logs - _pace(which, logs)
    return np.asarray(np.exp(flat - np.median(flat[anchor]) + np.median(logs[anchor])), np.float64)


def wander(which: NDArray[np.int64], ms: NDArray[np.float64]) -> float:
    """How far the machine's pace wandered, as `without_drift` sees it: slowest over fastest, less 1, of nine tenths of
    the time. 0 on a steady machine."""
    low, high = np.quantile(_pace(which, np.log(ms)), (0.05, 0.95))
    return float(np.exp(high - low) - 1)


def _pace(which: NDArray[np.int64], logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the machine's slowness at each sample, up to a constant; shape `(N,)`."""
    pace = np.zeros_like(logs)
    members = [np.flatnonzero(which == index) for index in np.unique(which)]
    for _ in range(PASSES):
        residual = logs.copy()
        for member in members:
            residual[member] -= np.median((logs - pace)[member])
        pace = _median_around(residual)
    return pace


def _median_around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.pad(values, REACH, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * REACH + 1)
    return np.asarray(np.median(np.delete(windows, REACH, axis=1), axis=1), np.float64)


def median_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median, and the order statistics that hold the true one with 95 % confidence (or least and largest, if too few).

    The number of samples below the true median is binomial with p = 1/2, whatever their distribution; its normal
    approximation is used.
    """
    ordered = np.sort(values)
    count = len(ordered)
    outside = max(0, round((count - Z * math.sqrt(count)) / 2) - 1)
    return float(np.median(ordered)), float(ordered[outside]), float(ordered[-1 - outside])
