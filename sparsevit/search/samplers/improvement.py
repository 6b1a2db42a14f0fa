"""How much a configuration would add to the front: expected gain in hypervolume, latencies being known beforehand.

Legend: N configurations, K steps of the front.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def front_of(ms: Array, accuracies: Array) -> tuple[Array, Array]:
    """Latencies and accuracies of those that nothing faster matches, both increasing; shape `(K,)` each."""
    order = np.lexsort((-accuracies, ms))
    best = np.maximum.accumulate(accuracies[order])
    better = np.concatenate([[True], best[1:] > best[:-1]])
    return ms[order][better], accuracies[order][better]


def hypervolume(ms: Array, accuracies: Array, reference: tuple[float, float]) -> float:
    """Area that points dominate up to `reference`, a latency and an accuracy, in ms times fractions."""
    inside = (ms < reference[0]) & (accuracies > reference[1])
    if not inside.any():
        return 0.0
    times, heights = front_of(ms[inside], accuracies[inside])
    return float(np.diff(np.append(times, reference[0])) @ (heights - reference[1]))


def expected_gain(
    ms: Array, means: Array, deviations: Array, front: tuple[Array, Array], reference: tuple[float, float]
) -> Array:
    """Expected gain in hypervolume of each of N configurations, shape `(N,)`.

    A gain is the integral, over the latencies from a configuration's own to the reference's, of what its accuracy
    exceeds the front's there by; so its expectation is that of the expected improvements over every step.

    Args:
        ms: latencies, shape `(N,)`.
        means: expected accuracies, shape `(N,)`.
        deviations: their standard deviations, shape `(N,)`, above 0.
        front: as `front_of` gives it.
        reference: a latency and an accuracy that every point is better than.
    """
    starts = np.concatenate([[-np.inf], front[0]])
    ends = np.append(front[0], reference[0])
    heights = np.concatenate([[reference[1]], front[1]])
    gain = np.zeros(len(ms))
    for start, end, height in zip(starts, ends, heights, strict=True):
        width = (end - np.maximum(ms, start)).clip(0)
        reached = np.flatnonzero(width)
        gain[reached] += (
            width[reached] * _improvement((means[reached] - height) / deviations[reached]) * (deviations[reached])
        )
    return gain


def _improvement(z: Array) -> Array:
    """Expectation of what a standard normal variable exceeds -z by."""
    import torch

    below = torch.special.ndtr(torch.from_numpy(z)).numpy()
    improvement: Array = z * below + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return improvement
