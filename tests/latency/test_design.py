from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.latency.design import designed, draw, tails
from sparsevit.sparsity import Sparsity, SparsitySpace

WINDOWS = (256, 64, 16, 4)  # Swin at 448 x 448


def test_cells_are_those_that_keep_other_windows() -> None:
    space = SparsitySpace()
    cells = tails(space, WINDOWS)
    assert len(cells) == 8 + 8 + 3 * 8 + 3  # the last stage has 4 windows, so 3 ways to prune
    assert len({cell.kept(WINDOWS) for cell in cells}) == len(cells)
    assert all(cell in space and not cell.is_dense for cell in cells)
    assert Sparsity.parse("0/0/0,0.4,0.4/0") in cells
    assert tails(space, (1, 1, 1, 1)) == []


@given(st.integers(0, 2**16))
def test_draws_are_seeded_and_differ_in_what_they_keep(seed: int) -> None:
    space = SparsitySpace()
    first = draw(space, WINDOWS, 8, seed)
    assert first == draw(space, WINDOWS, 8, seed)
    second = draw(space, WINDOWS, 8, seed, besides=first)
    assert len({sparsity.kept(WINDOWS) for sparsity in [*first, *second]}) == 16


def test_a_small_space_gives_what_it_has() -> None:
    space = SparsitySpace((2,), ("0", "0.5"))
    assert len(draw(space, (10,), 5, 0)) == 2
    assert draw(space, (10,), 5, 0, besides=list(space)) == []


@given(st.integers(0, 2**16))
def test_a_design_is_seeded_new_and_sees_every_cell(seed: int) -> None:
    space = SparsitySpace()
    held = draw(space, WINDOWS, 10, seed)
    found = designed(space, WINDOWS, 65, seed, besides=held)
    assert found == designed(space, WINDOWS, 65, seed, besides=held)
    assert len({one.kept(WINDOWS) for one in [*found, *held]}) == 75
    kept = np.array([one.kept(WINDOWS) for one in found])
    for layer, row in enumerate(space.kept_table(WINDOWS)):
        assert set(row) - {max(row)} <= set(kept[:, layer])


def test_a_design_tells_more_than_as_many_tails() -> None:
    """Of the mean variance of predictions, for additive latencies measured with the same noise."""
    space = SparsitySpace()
    cells = tails(space, WINDOWS)
    checks = draw(space, WINDOWS, 200, 5)

    def features(sparsities: list[Sparsity]) -> np.ndarray:
        kept = np.array([one.kept(WINDOWS) for one in sparsities])
        every = [(layer, count) for layer, row in enumerate(space.kept_table(WINDOWS)) for count in np.unique(row)[:-1]]
        return np.column_stack([np.ones(len(kept)), *((kept[:, layer] == count) for layer, count in every)])

    def variance(measured: list[Sparsity]) -> float:
        x, z = features([space.dense, *measured]), features(checks)
        return float(np.einsum("np,pq,nq->n", z, np.linalg.inv(x.T @ x), z).mean())

    assert variance(designed(space, WINDOWS, len(cells), 0)) < 0.6 * variance(cells)


@pytest.mark.parametrize("windows", [(1, 1, 1, 1), (1, 2, 1, 1)])
def test_a_design_of_next_to_nothing(windows: tuple[int, ...]) -> None:
    space = SparsitySpace()
    assert len(designed(space, windows, 10, 0)) == space.count_distinct(windows) - 1
