"""Fixed layers and layers with grids of their own, against brute force over a small space."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.search.candidates import find_candidates
from sparsevit.search.restriction import Restriction
from sparsevit.search.results import Bounds
from sparsevit.sparsity import Sparsity, SparsitySpace

WINDOWS = (10, 4)
SPACE = SparsitySpace((2, 4), tuple(value / 10 for value in range(7)))  # type: ignore[arg-type]
NAMES = ("s1", "s2.1", "s2.2")

chosen = st.fixed_dictionaries(
    {}, optional={name: st.sets(st.sampled_from(SPACE.grid), min_size=1).map(sorted) for name in NAMES}
)


def predict(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return 12 - levels @ np.array([0.4, 0.5, 0.3])


def allowed(sparsity: Sparsity, ratios: dict[str, list[Decimal]]) -> bool:
    flat = zip(NAMES, sparsity.flat, strict=True)
    return all(value in ratios.get(name, SPACE.grid) for name, value in flat)


@given(chosen)
def test_what_is_left_is_what_brute_force_leaves(ratios: dict[str, list[Decimal]]) -> None:
    expected = [one for one in SPACE if allowed(one, ratios)]
    if not expected:
        with pytest.raises(UserError, match=r"leaves no configuration.* s2\.1, s2\.2 cannot but decrease"):
            Restriction.of(SPACE, ratios)
        return
    restriction = Restriction.of(SPACE, ratios)
    assert len(restriction) == len(expected)
    found = [SPACE.decode([*first, *second]) for first in restriction.stage_levels()[0] for second in
             restriction.stage_levels()[1]]  # fmt: skip
    assert found == expected
    assert restriction.is_whole == (len(expected) == len(SPACE))


@given(chosen)
def test_candidates_are_allowed_and_one_for_each_set_of_kept_windows(ratios: dict[str, list[Decimal]]) -> None:
    left = [one for one in SPACE if allowed(one, ratios)]
    assume(left)
    found = find_candidates(SPACE, WINDOWS, predict, Bounds(0, 99), Restriction.of(SPACE, ratios))
    configurations = [found.sparsity(row) for row in range(len(found))]
    assert all(allowed(one, ratios) for one in configurations)
    kept = {one.kept(WINDOWS) for one in left}
    assert len(configurations) == len(kept) == found.distinct
    assert {one.kept(WINDOWS) for one in configurations} == kept
    for one in SPACE:
        row = found.row(one)
        assert (row >= 0) == (one.kept(WINDOWS) in kept)
        if row >= 0:
            assert found.sparsity(row).kept(WINDOWS) == one.kept(WINDOWS)
    for layer, choices in enumerate(found.choices):
        assert set(found.canonical(found.levels)[:, layer]) == set(choices)


def test_a_stage_stands_for_its_layers_and_a_layer_counts_before_it() -> None:
    narrow = [Decimal("0.1"), Decimal("0.3")]
    restriction = Restriction.of(SPACE, {"s2": narrow, "s2.2": [Decimal("0.3")], "s1.1": [Decimal(0)]})
    assert str(restriction) == "s1=0 s2.1=0.1,0.3 s2.2=0.3"
    assert len(restriction) == 2
    assert str(Restriction.of(SPACE, {})) == "none"


@pytest.mark.parametrize("name", ["s3", "s2.3", "s1.2"])
def test_unknown_layers_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"space\.layers\.{name}: the backbone has no such layer; it has s1, s2\.1, s2\.2"
    ):
        Restriction.of(SPACE, {name: [Decimal(0)]})
