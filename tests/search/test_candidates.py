"""The feasible set, against brute force over whole small spaces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.search.candidates import Candidates, find_candidates, require
from sparsevit.search.results import Bounds
from sparsevit.sparsity import SparsitySpace

WINDOWS = (10, 4)
SPACE = SparsitySpace((2, 4), tuple(value / 10 for value in range(9)))  # type: ignore[arg-type]


def predict(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """12 ms dense, less for every level."""
    return 12 - levels @ np.array([0.4, 0.5, 0.3])


def candidates(low: float = 0.0, high: float = 99.0) -> Candidates:
    return find_candidates(SPACE, WINDOWS, predict, Bounds(low, high))


def test_each_set_of_kept_windows_has_one_candidate() -> None:
    found = candidates()
    kept = [found.sparsity(row).kept(WINDOWS) for row in range(len(found))]
    assert len(set(kept)) == len(kept) == found.distinct == SPACE.count_distinct(WINDOWS)
    assert set(kept) == {one.kept(WINDOWS) for one in SPACE}


def test_the_lowest_ratios_stand_in() -> None:
    found = candidates()
    for one in SPACE:
        other = found.sparsity(found.row(one))
        assert other.kept(WINDOWS) == one.kept(WINDOWS)
        assert all(low <= high for low, high in zip(other.flat, one.flat, strict=True))


@given(st.floats(2, 13), st.floats(2, 13))
def test_rows_are_found_exactly_where_feasible(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = candidates(low, high)
    assert (np.diff(found.ms) >= 0).all()
    everything = SPACE.all_levels()
    rows = found.rows(everything)
    stand_ins = found.canonical(everything)
    ms = predict(stand_ins.astype(np.uint8))
    assert ((rows >= 0) == ((ms >= low) & (ms <= high))).all()
    inside = rows >= 0
    assert (found.levels[rows[inside]] == stand_ins[inside]).all()
    assert found.reachable == (ms.min(), ms.max())


def test_unsorted_levels_are_sorted_first() -> None:
    found = candidates()
    assert found.rows([[3, 5, 0]]) == found.rows([[3, 0, 5]])


def test_no_candidate_states_the_reachable_range() -> None:
    for low, high in ((0.0, 1.0), (13.0, 14.0)):
        with pytest.raises(UserError, match="within reach are 4 to 12 ms"):
            require(candidates(low, high), Bounds(low, high), "cpu")
        assert (candidates(low, high).rows(SPACE.all_levels()) == -1).all()


def test_nearest_is_as_from_a_table_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = candidates(9, 11)
    rng = np.random.default_rng(0)
    grid = np.array([float(value) for value in SPACE.grid])
    rows = np.sort(rng.choice(len(found), len(found) // 2, replace=False))
    for chunk in (1 << 18, 7):
        monkeypatch.setattr("sparsevit.search.candidates.CHUNK", chunk)
        for wanted in rng.integers(len(SPACE.grid), size=(5, sum(SPACE.layers))):
            distances = np.abs(grid[found.levels[rows]] - grid[found.canonical(wanted[None])[0]]).sum(axis=1)
            expected = rows[np.isclose(distances, distances.min())]
            assert sorted(found.nearest(wanted, rows)) == expected.tolist()


def test_levels_of_some_are_those_of_all() -> None:
    found = candidates(9, 11)
    rows = np.array([5, 3, 3, len(found) - 1])
    assert (found.levels_of(rows) == found.levels[rows]).all()


def test_a_space_too_large_to_go_through_is_refused() -> None:
    space = SparsitySpace((2, 2, 48, 2))
    with pytest.raises(UserError, match=r"9 ratios in 27 layers make [\d,]+ configurations, more than the 200,000,000"):
        find_candidates(space, (576, 144, 36, 9), predict, Bounds(0, 1))
