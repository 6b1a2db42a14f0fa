"""Whole spaces by stages equal one configuration at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.latency import whole
from sparsevit.latency.additive import Terms
from sparsevit.latency.bottleneck import slower
from sparsevit.latency.whole import count_within, numbers_within, predict_all, reachable
from sparsevit.sparsity import SparsitySpace, product_levels

spaces = st.builds(
    SparsitySpace,
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    st.sampled_from([("0", "0.1", "0.5", "0.8"), ("0", "0.3"), ("0.2", "0.4", "0.9")]),
)


def some_terms(space: SparsitySpace, count: int, seed: int) -> tuple[Terms, ...]:
    rng = np.random.default_rng(seed)

    def table(rows: int) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, rng.normal(size=(rows, len(space.grid))).tolist()))

    layers, stages = sum(space.layers), len(space.layers)
    return tuple(Terms(float(rng.uniform(20, 21)), table(layers), table(stages)) for _ in range(count))


@given(spaces, st.integers(1, 2), st.integers(0, 2**16), st.sampled_from([7, 1 << 20]))
def test_a_whole_space_equals_its_configurations(space: SparsitySpace, sums: int, seed: int, chunk: int) -> None:
    terms = some_terms(space, sums, seed)
    expected = slower(space, terms, space.all_levels())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "CHUNK", chunk)
        found = predict_all(space, terms)
        assert found.dtype == np.float32
        assert found == pytest.approx(expected, rel=1e-6)
        low, high = np.quantile(expected, [0.3, 0.8]) + 1e-7
        numbers, ms = numbers_within(space, terms, low, high)
        assert numbers.tolist() == np.flatnonzero((expected >= low) & (expected <= high)).tolist()
        assert ms == pytest.approx(expected[numbers])
        assert count_within(space, terms, low, high) == len(numbers)
        assert reachable(space, terms) == pytest.approx((expected.min(), expected.max()))
    inside = product_levels(space.stage_levels, numbers)
    assert (slower(space, terms, inside) <= high + 1e-9).all()


@pytest.mark.parametrize("sums", [1, 2])
def test_bounds_that_nothing_meets(sums: int) -> None:
    space = SparsitySpace()
    terms = some_terms(space, sums, 0)
    assert count_within(space, terms, 1e6, 2e6) == 0
    assert [len(found) for found in numbers_within(space, terms, 1e6, 2e6)] == [0, 0]


def test_millions_are_counted_without_being_listed() -> None:
    """Swin-B has 17.7 million; their latencies alone would take 70 MB."""
    space = SparsitySpace((2, 2, 18, 2))
    (terms,) = some_terms(space, 1, 0)
    low, high = reachable(space, (terms,))
    assert count_within(space, (terms,), low - 1, high + 1) == len(space) == 17_721_990
    middle = (low + high) / 2
    below, above = count_within(space, (terms,), 0, middle), count_within(space, (terms,), middle, 100)
    assert below + above == len(space)
