from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevit.latency.additive import Array, Terms, falling, fit_terms, kendall
from sparsevit.latency.design import designed, draw, tails
from sparsevit.sparsity import Sparsity, SparsitySpace, product_levels

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


def predict(terms: Terms, space: SparsitySpace, sparsities: Sequence[Sparsity]) -> Array:
    return terms.of(space, np.array([space.encode(sparsity) for sparsity in sparsities]))


@settings(max_examples=20)
@given(spaces, st.integers(0, 2**16), st.integers(16, 300))
def test_an_additive_latency_is_recovered(space: SparsitySpace, seed: int, windows: int) -> None:
    """A designed set is enough for all, whatever the number of layers and the shape of the terms."""
    counts = tuple(max(1, windows // 4**stage) for stage in range(len(space.depths)))
    terms = bumpy(space, counts, seed)
    cells = tails(space, counts)
    measured = [space.dense, *cells, *designed(space, counts, len(cells), seed, besides=cells)]
    ms = np.array([total(terms, sparsity, counts) for sparsity in measured])
    fitted = fit_terms(space, counts, measured, ms, np.ones(len(measured)))
    assert fitted.dense_ms == pytest.approx(100, rel=1e-3)
    inside = [one for one in draw(space, counts, 10, seed + 1) if one in space]
    truth = [total(terms, sparsity, counts) for sparsity in inside]
    assert predict(fitted, space, inside) == pytest.approx(truth, rel=2e-3)


def test_three_layers_telescope_as_written() -> None:
    """f(a,b,c) = f(a,a,a) + f(0,b,b) - f(0,a,a) + f(0,0,c) - f(0,0,b), also where f itself is not additive by layer."""
    space = SparsitySpace((6,), ("0", "0.2", "0.5", "0.8"))

    def f(*levels: int) -> float:
        ranked = 3.0 if any(levels) else 0.0  # paid once a stage, so no sum over layers of their own terms
        return 100 + ranked - sum(level**2 * (layer + 1) for layer, level in enumerate(levels))

    cells = [space.dense, *tails(space, (100,))]
    cells += designed(space, (100,), 6, 0, besides=cells)
    ms = np.array([f(*space.encode(cell)) for cell in cells])
    terms = fit_terms(space, (100,), cells, ms, np.ones(len(cells)))
    for levels in space.all_levels().tolist():
        a, b, c = levels
        telescoped = f(a, a, a) + f(0, b, b) - f(0, a, a) + f(0, 0, c) - f(0, 0, b)
        assert telescoped == f(a, b, c)
        assert float(terms.of(space, np.array([levels]))[0]) == pytest.approx(telescoped, rel=2e-3)


def test_noise_is_smoothed_to_the_line_that_the_cells_follow() -> None:
    space = SparsitySpace()
    slopes = np.array([30.0, 15, 10, 10, 10, 5])
    totals = np.array([256, 64, 16, 16, 16, 4])
    rng = np.random.default_rng(0)

    def latency(sparsity: Sparsity) -> float:
        return 100.0 - float(slopes @ (1 - np.array(sparsity.kept(WINDOWS)) / totals))

    measured = [space.dense, *designed(space, WINDOWS, 64, 0)]
    truth = np.array([latency(sparsity) for sparsity in measured])
    noisy = truth * np.exp(rng.normal(0, 0.03, len(truth)))
    terms = fit_terms(space, WINDOWS, measured, noisy, np.ones(len(truth)))
    checks = draw(space, WINDOWS, 100, 1, besides=measured)
    predicted = predict(terms, space, checks)
    exact = np.array([latency(sparsity) for sparsity in checks])
    assert np.abs(predicted / exact - 1).mean() < 0.012  # less than half the noise of one measurement
    assert kendall(predicted, exact) > 0.93


def test_layers_of_a_stage_tell_of_each_other() -> None:
    """Nine layers that run the same kernels: their shared steps are found below the noise of each layer's own cells."""
    space = SparsitySpace((18,))
    rng = np.random.default_rng(1)
    step = dict(zip(range(10, 91, 10), np.cumsum(rng.uniform(0.0, 2.0, 9)), strict=True))  # ms, by windows kept

    def latency(sparsity: Sparsity) -> float:
        return 100.0 + sum(step.get(count, 20.0) for count in sparsity.kept((100,)))

    measured = [space.dense, *designed(space, (100,), 70, 0)]
    truth = np.array([latency(sparsity) for sparsity in measured])
    noisy = truth * np.exp(rng.normal(0, 0.01, len(truth)))
    terms = fit_terms(space, (100,), measured, noisy, np.ones(len(truth)))
    checks = draw(space, (100,), 100, 1, besides=measured)
    exact = np.array([latency(sparsity) for sparsity in checks])
    assert np.abs(predict(terms, space, checks) / exact - 1).mean() < 0.005


@pytest.mark.parametrize("saved", [0.0, 4.0])
def test_repeats_count_only_where_there_is_evidence(saved: float) -> None:
    space = SparsitySpace((6,))
    rng = np.random.default_rng(0)

    def latency(sparsity: Sparsity) -> float:
        a, b, c = sparsity.flat
        repeats = (0 < a == b) + (0 < b == c)
        return 200 - 100 * float(a + b + c) / 3 - saved * repeats

    measured = [space.dense, *designed(space, (100,), 60, 0)]
    ms = np.array([latency(one) for one in measured]) * np.exp(rng.normal(0, 0.002, 61))
    terms = fit_terms(space, (100,), measured, ms, np.ones(61))
    assert any(map(any, terms.repeats)) == (saved > 0)
    if saved:
        assert np.array(terms.repeats)[0, 1:] == pytest.approx(np.full(8, -saved), abs=0.8)
    checks = draw(space, (100,), 60, 3)
    exact = np.array([latency(one) for one in checks])
    assert np.abs(predict(terms, space, checks) / exact - 1).mean() < 0.003


def test_more_pruning_is_never_slower_but_the_first_step_may_rise() -> None:
    space = SparsitySpace((2,))
    measured = [space.dense, *tails(space, (100,))]
    ms = np.array([100.0, 108, 104, 106, 90, 91, 80, 70, 75])
    terms = fit_terms(space, (100,), measured, ms, np.full(9, 1e3))
    (row,) = terms.cells
    assert row[0] == 0
    assert row[1] > 0
    assert (np.diff(row[1:]) <= 1e-9).all()


def test_a_rise_beyond_doubt_is_believed() -> None:
    """Libraries choose kernels by shape, so fewer windows can be slower; measured often enough, that is no noise."""
    space = SparsitySpace((2, 2))
    rng = np.random.default_rng(0)
    odd = Decimal("0.5")

    def latency(sparsity: Sparsity) -> float:
        (a,), (b,) = sparsity.stages
        return 100 - 20 * float(a) - 10 * float(b) + (6 if a == odd else 0)

    measured = [space.dense, *designed(space, (100, 100), 60, 0)]
    ms = np.array([latency(one) for one in measured]) * np.exp(rng.normal(0, 0.001, len(measured)))
    terms = fit_terms(space, (100, 100), measured, ms, np.ones(len(measured)))
    assert terms.cells[0][5] - terms.cells[0][4] == pytest.approx(4, abs=0.5)
    assert (np.diff(terms.cells[1][1:]) <= 0).all()


@given(spaces, st.integers(0, 2**16))
def test_sums_by_stage_are_sums_by_layer(space: SparsitySpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(sum(space.layers) + len(space.layers), len(space.grid))).tolist()
    terms = Terms(50.0, tuple(map(tuple, table[: sum(space.layers)])), tuple(map(tuple, table[sum(space.layers) :])))
    numbers = rng.integers(len(space), size=20)
    sizes = [len(stage) for stage in space.stage_levels]
    places = np.unravel_index(numbers, sizes)
    sums = 50.0 + sum(part[place] for part, place in zip(terms.of_stages(space), places, strict=True))
    assert terms.of(space, product_levels(space.stage_levels, numbers)) == pytest.approx(sums)


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


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.data())
def test_a_sequence_may_rise_where_it_is_allowed_to(values: list[float], data: st.DataObject) -> None:
    rises = np.array(data.draw(st.lists(st.booleans(), min_size=len(values) - 1, max_size=len(values) - 1)))
    result = falling(np.array(values), rises)
    assert (np.diff(result)[~rises] <= 1e-9).all()
    cuts = np.flatnonzero(rises) + 1
    parts = zip(np.split(np.array(values), cuts), np.split(result, cuts), strict=True)
    assert all(np.allclose(found, falling(part)) for part, found in parts)


def test_outliers_are_believed_less() -> None:
    """What others' work on the machine makes of some measurements does not spread over the predictions of all."""
    space, windows = SparsitySpace(), (576, 144, 36, 9)
    rng = np.random.default_rng(0)
    cells = np.array([30.0, 15, 10, 10, 10, 5])
    totals = np.array([576, 144, 36, 36, 36, 9])

    def latency(sparsity: Sparsity) -> float:
        return 100.0 - float(cells @ (1 - np.array(sparsity.kept(windows)) / totals))

    measured = [space.dense, *designed(space, windows, 72, 0)]
    ms = np.array([latency(one) for one in measured]) * np.exp(rng.normal(0, 0.003, len(measured)))
    ms[5::12] *= 1.15
    terms = fit_terms(space, windows, measured, ms, np.ones(len(ms)))
    checks = draw(space, windows, 100, 1)
    exact = np.array([latency(one) for one in checks])
    assert np.abs(predict(terms, space, checks) / exact - 1).mean() < 0.01  # 15 % of 8 % of the measurements is 1.2 %
