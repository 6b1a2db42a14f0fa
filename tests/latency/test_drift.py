from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.latency.drift import median_interval, wander, without_drift


def series(paces: np.ndarray, costs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled rounds with the anchor, 0, after every third sample, at the given pace of the machine."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < len(paces):
        for position, number in enumerate(rng.permutation(np.arange(1, len(costs)))):
            order += [0, int(number)] if position % 3 == 0 else [int(number)]
    which = np.array(order[: len(paces)])
    return which, costs[which] * paces


@pytest.mark.parametrize("seed", range(5))
def test_a_machine_that_slows_down_changes_no_ratio(seed: int) -> None:
    costs = np.array([100.0, 80, 60, 40, 20, 30, 90])
    which, ms = series(np.exp(np.linspace(0, 1, 140)), costs, seed)
    flat = without_drift(which, ms)
    medians = np.array([np.median(flat[which == number]) for number in range(len(costs))])
    assert np.allclose(medians / medians[0], costs / 100, rtol=0.02)
    assert np.median(flat[which == 0]) == pytest.approx(np.median(ms[which == 0]))
    raw = np.array([np.std(np.log(ms[which == number])) for number in range(len(costs))])
    left = np.array([np.std(np.log(flat[which == number])) for number in range(len(costs))])
    assert (left < raw / 10).all()


def test_a_steady_machine_needs_no_correction() -> None:
    which, ms = series(np.ones(50), np.array([10.0, 5, 3, 8]), 0)
    assert np.allclose(without_drift(which, ms), ms)


def test_the_wandering_of_the_pace_is_told_whatever_the_configurations() -> None:
    costs = np.array([100.0, 80, 60, 40, 20, 30, 90])
    assert wander(*series(np.ones(140), costs, 0)) == pytest.approx(0, abs=1e-9)
    assert wander(*series(np.exp(np.linspace(0, 1, 140)), costs, 0)) == pytest.approx(math.exp(0.9) - 1, rel=0.1)


def test_a_burst_moves_no_median() -> None:
    paces = np.ones(80)
    paces[30:50] = 7
    costs = np.array([10.0, 5, 3, 8])
    which, ms = series(paces, costs, 1)
    flat = without_drift(which, ms)
    assert [float(np.median(flat[which == number])) for number in range(4)] == pytest.approx(costs.tolist())


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=40))
def test_the_interval_holds_the_median(values: list[float]) -> None:
    median, low, high = median_interval(np.array(values))
    assert min(values) <= low <= median <= high <= max(values)


@pytest.mark.parametrize("count", [6, 7, 9, 12, 17, 30, 100, 501])
def test_the_interval_covers_the_true_median_with_95_percent(count: int) -> None:
    _, low, high = median_interval(np.arange(count, dtype=float))
    outside = int(low) + 1  # samples below the true median that would put it outside
    assert 2 * sum(math.comb(count, below) for below in range(outside)) / 2**count <= 0.05
    assert high == count - 1 - low
    assert high - low < 1.2 * 1.96 * math.sqrt(count) + 2
