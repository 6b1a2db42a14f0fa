"""Hypervolumes and expected gains, against counting and against drawing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.search.samplers.improvement import expected_gain, front_of, hypervolume

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_hypervolume_counts_the_dominated_cells(points: list[tuple[int, int]]) -> None:
    ms, accuracies = np.array(points, float).T
    cells = sum(any(a <= x and b >= y + 1 for a, b in points) for x in range(10) for y in range(10))
    assert hypervolume(ms, accuracies, (10.0, 0.0)) == cells


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    ms, accuracies = np.array(points, float).T
    front = list(zip(*front_of(ms, accuracies), strict=True))
    assert front == sorted(front)
    left = {(x, y) for x, y in points if not any((a, b) != (x, y) and a <= x and b >= y for a, b in points)}
    assert set(front) == left


def test_expected_gain_is_the_mean_of_the_gains_drawn() -> None:
    rng = np.random.default_rng(0)
    front = front_of(np.array([2.0, 4.0, 7.0]), np.array([0.3, 0.5, 0.8]))
    reference = (10.0, 0.1)
    ms, means, deviations = (
        np.array([1.0, 3.0, 4.0, 9.0]),
        np.array([0.4, 0.2, 0.6, 0.8]),
        np.array([0.1, 0.3, 0.05, 0.2]),
    )
    before = hypervolume(*front, reference)
    drawn = rng.normal(means, deviations, (4000, 4))
    gains = [
        [hypervolume(np.append(front[0], ms[i]), np.append(front[1], row[i]), reference) - before for i in range(4)]
        for row in drawn
    ]
    np.testing.assert_allclose(
        expected_gain(ms, means, deviations, front, reference), np.mean(gains, axis=0), rtol=0.06, atol=1e-3
    )
