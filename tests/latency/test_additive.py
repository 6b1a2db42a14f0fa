from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevit.latency.additive import draw, falling, fit_table, kendall, tails
from sparsevit.sparsity import Sparsity, SparsitySpace

WINDOWS = (256, 64, 16, 4)  # Swin at 448 x 448

spaces = st.builds(
    SparsitySpace,
    st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    st.sampled_from([("0", "0.1", "0.5", "0.8"), ("0", "0.3"), ("0.2", "0.4", "0.9")]),
)


def bumpy(space: SparsitySpace, windows: tuple[int, ...], seed: int) -> dict[tuple[int, int], float]:
    """A latency term for every layer and number of kept windows: falling, in steps of any height, all windows 0."""
    rng = np.random.default_rng(seed)
    terms = {}
    for layer, row in enumerate(space.kept_table(windows)):
        total = windows[[s for s, count in enumerate(space.layers) for _ in range(count)][layer]]
        counts = sorted({int(count) for count in row} - {total}, reverse=True)
        values = 2.0 - np.cumsum(rng.uniform(0, 3, len(counts)))  # the first step may rise: ranking costs
        terms |= {(layer, count): float(value) for count, value in zip(counts, values, strict=True)}
    return terms


def total(terms: dict[tuple[int, int], float], sparsity: Sparsity, windows: tuple[int, ...]) -> float:
    return 100.0 + sum(terms.get(cell, 0.0) for cell in enumerate(sparsity.kept(windows)))


@settings(max_examples=20)
@given(spaces, st.integers(0, 2**16), st.integers(16, 300))
def test_an_additive_latency_is_recovered(space: SparsitySpace, seed: int, windows: int) -> None:
    """Cells and some mixed sparsities are enough for all, whatever the number of layers and the shape of the terms."""
    counts = tuple(max(1, windows // 4**stage) for stage in range(len(space.depths)))
    terms = bumpy(space, counts, seed)
    measured = [space.dense, *tails(space, counts)]
    measured += draw(space, counts, len(measured), seed, besides=measured)
    ms = np.array([total(terms, sparsity, counts) for sparsity in measured])
    dense, table = fit_table(space, counts, measured, ms, np.ones(len(measured)))
    assert dense == pytest.approx(100, rel=1e-4)
    for sparsity in draw(space, counts, 10, seed + 1):
        predicted = dense + sum(table[layer, level] for layer, level in enumerate(space.encode(sparsity)))
        assert predicted == pytest.approx(total(terms, sparsity, counts), rel=1e-4)


def test_three_layers_telescope_as_written() -> None:
    """f(a,b,c) = f(a,a,a) + f(0,b,b) - f(0,a,a) + f(0,0,c) - f(0,0,b), also where f itself is not additive by layer."""
    space = SparsitySpace((6,), ("0", "0.2", "0.5", "0.8"))

    def f(*levels: int) -> float:
        ranked = 3.0 if any(levels) else 0.0  # paid once a stage, so no sum over layers of their own terms
        return 100 + ranked - sum(level**2 * (layer + 1) for layer, level in enumerate(levels))

    cells = [space.dense, *tails(space, (100,))]
    ms = np.array([f(*space.encode(cell)) for cell in cells])
    dense, table = fit_table(space, (100,), cells, ms, np.ones(len(cells)))
    for levels in space.all_levels().tolist():
        a, b, c = levels
        telescoped = f(a, a, a) + f(0, b, b) - f(0, a, a) + f(0, 0, c) - f(0, 0, b)
        assert telescoped == f(a, b, c)
        assert dense + table[0, a] + table[1, b] + table[2, c] == pytest.approx(telescoped, rel=2e-3)


def test_noise_is_smoothed_to_the_line_that_the_cells_follow() -> None:
    space = SparsitySpace()
    slopes = np.array([30.0, 15, 10, 10, 10, 5])
    totals = np.array([256, 64, 16, 16, 16, 4])
    rng = np.random.default_rng(0)

    def latency(sparsity: Sparsity) -> float:
        return 100.0 - float(slopes @ (1 - np.array(sparsity.kept(WINDOWS)) / totals))

    measured = [space.dense, *tails(space, WINDOWS)]
    measured += draw(space, WINDOWS, len(measured) // 2, 0, besides=measured)
    truth = np.array([latency(sparsity) for sparsity in measured])
    noisy = truth * np.exp(rng.normal(0, 0.03, len(truth)))
    dense, table = fit_table(space, WINDOWS, measured, noisy, np.ones(len(truth)))
    checks = draw(space, WINDOWS, 100, 1, besides=measured)
    predicted = np.array([dense + sum(table[i, level] for i, level in enumerate(space.encode(s))) for s in checks])
    exact = np.array([latency(sparsity) for sparsity in checks])
    assert np.abs(predicted / exact - 1).mean() < 0.02  # less than the noise of one measurement
    assert kendall(predicted, exact) > 0.9


def test_more_pruning_is_never_slower_but_the_first_step_may_rise() -> None:
    space = SparsitySpace((2,))
    measured = [space.dense, *tails(space, (100,))]
    ms = np.array([100.0, 108, 104, 106, 90, 91, 80, 70, 75])
    _, table = fit_table(space, (100,), measured, ms, np.full(9, 1e3))
    assert table[0, 0] == 0
    assert table[0, 1] > 0
    assert (np.diff(table[0, 1:]) <= 0).all()


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


@given(st.lists(st.floats(-1e3, 1e3), max_size=12))
def test_the_nearest_falling_sequence(values: list[float]) -> None:
    result = falling(np.array(values))
    assert result.shape == (len(values),)
    assert (np.diff(result) <= 1e-9).all()
    assert np.allclose(falling(result), result)
    assert result.sum() == pytest.approx(sum(values), abs=1e-6)
    ordered = np.sort(values)[::-1]
    assert np.allclose(falling(ordered), ordered)


def test_kendalls_tau() -> None:
    a = np.array([1.0, 2, 3, 4])
    assert kendall(a, a * 10) == 1
    assert kendall(a, -a) == -1
    assert kendall(a, np.array([1.0, 2, 4, 3])) == pytest.approx(4 / 6)
    assert kendall(a, np.array([1.0, 1, 2, 2])) == pytest.approx(4 / np.sqrt(6 * 4))
    assert np.isnan(kendall(a, np.ones(4)))
