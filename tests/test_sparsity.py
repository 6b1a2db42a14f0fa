"""Sparsity and its space: every way to write one, every refusal, and the arithmetic that all else rests on."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevit import Sparsity, SparsitySpace, UserError
from sparsevit.sparsity import kept_windows, layers_per_stage, ratio, repair, windows_per_stage

SWIN_T = (2, 2, 6, 2)
CFG1 = "0.3/0/0.1,0.2,0.2/0"
SMALL = SparsitySpace(depths=(2, 4, 3), grid=(Decimal(0), Decimal("0.35"), Decimal("0.6"), Decimal("0.8")))


def grid(*values: str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, values))


ratios = st.integers(0, 999_999).map(lambda n: Decimal(n) / 1_000_000)
stage_lists = st.lists(st.lists(ratios, min_size=1, max_size=4), min_size=1, max_size=5)
swin_t_levels = st.lists(st.integers(0, 8), min_size=6, max_size=6)


@given(stage_lists)
def test_text_form_is_canonical_and_parses_back(stages: list[list[Decimal]]) -> None:
    sparsity = repair(stages)
    text = str(sparsity)
    assert Sparsity.parse(text) == sparsity
    assert str(Sparsity.parse(text)) == text
    assert Sparsity.parse(text.replace("/", " | ").replace(",", " ")) == sparsity
    assert hash(Sparsity.parse(text)) == hash(sparsity)


@pytest.mark.parametrize(
    "value",
    [
        [0.3, 0, 0.1, 0.2, 0.2, 0],
        (0.3, 0.0, 0.1, 0.2, 0.2, 0.0),
        np.array([0.3, 0, 0.1, 0.2, 0.2, 0], dtype=np.float32),
        ["0.3", "0", "0.1", "0.2", "0.2", "0"],
        [[0.3], [0], [0.1, 0.2, 0.2], [0]],
        ((0.3,), (0,), (0.1, 0.2, 0.2), (0,)),
        [[0.3, 0.3], [0.0, 0.0], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0.0, 0.0]],
        [0.3, 0.3, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0, 0],
        CFG1,
        "0.3|0|0.1,0.2,0.2|0",
        " .3 | 0 | .1 .2 .2 | 0.00 ",
        "0.3, 0, 0.1, 0.2, 0.2, 0",
        "0.3,0.3/0,0/0.1,0.1,0.2,0.2,0.2,0.2/0,0",
        Sparsity.parse(CFG1),
    ],
)
def test_every_form_means_the_same(value: Any) -> None:
    assert str(Sparsity.of(value, SWIN_T)) == CFG1
    assert SparsitySpace().parse(value) == Sparsity.parse(CFG1)


@pytest.mark.parametrize("value", [0.6, "0.6", Decimal("0.60"), np.float32(0.6), np.float64(0.6)])
def test_one_number_is_for_all_layers(value: Any) -> None:
    assert str(Sparsity.of(value, SWIN_T)) == "0.6/0.6/0.6,0.6,0.6/0.6"
    assert SparsitySpace().uniform(value) == Sparsity.of(value, SWIN_T)


@pytest.mark.parametrize("value", [None, "dense", " Dense ", 0, "0", -0.0])
def test_dense(value: Any) -> None:
    sparsity = Sparsity.of(value, SWIN_T)
    assert sparsity.is_dense
    assert str(sparsity) == "0/0/0,0,0/0"
    assert sparsity == SparsitySpace().dense


def test_odd_depths_end_in_a_layer_of_one_block() -> None:
    assert layers_per_stage((2, 3, 1)) == (1, 2, 1)
    assert str(Sparsity.of([0.1, 0.1, 0.2, 0.2, 0.3, 0.4], (2, 3, 1))) == "0.1/0.2,0.3/0.4"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([0.3, 0, 0.2, 0.1, 0.2, 0], ["decrease inside stage 3", "0.2,0.1,0.2", "write 0.1,0.2,0.2"]),
        ([0.3, 0, 0.1], ["[0.3, 0, 0.1] does not fit", "depths (2, 2, 6, 2)", "1 + 1 + 3 + 1"]),
        ([[0.3], [0], [0.1, 0.2], [0]], ["does not fit", "or per block"]),
        ([0.3, [0], [0.1, 0.2, 0.2], [0]], ["does not fit"]),
        ([], ["[] does not fit"]),
        ("0.3/0/0.1", ["'0.3/0/0.1' does not fit", "for example 0.3/0/0.1,0.2,0.2/0"]),
        (Sparsity.parse("0.1/0.2"), ["sparsity 0.1/0.2 does not fit"]),
        ([[0.3, 0.2], [0, 0], [0] * 6, [0, 0]], ["two blocks of a layer", "stage 1 has 0.3 and 0.2 in 0.3,0.2"]),
        ("0.3//0.1/0", ["cannot read the sparsity '0.3//0.1/0'", "stages apart with '/'"]),
        ("", ["cannot read the sparsity ''"]),
        ("some", ["ratio 'some' is not a number"]),
        (["some"] * 6, ["ratio 'some' is not a number"]),
        (float("nan"), ["ratio nan is not a number"]),
        ("NaN", ["ratio 'NaN' is not a number"]),
        ([None] * 6, ["ratio None is not a number"]),
        (1, ["ratio 1 is outside 0 <= ratio < 1"]),
        (-0.1, ["ratio -0.1 is outside"]),
        (0.9999999, ["ratio 0.9999999 is outside"]),
        ("inf", ["ratio inf is outside"]),
        ("1e40", ["ratio 1e40 is outside"]),
    ],
)
def test_refusals_name_the_value_and_the_remedy(value: Any, says: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        Sparsity.of(value, SWIN_T)
    message = str(refusal.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_a_sparsity_has_layers_in_every_stage() -> None:
    for stages in ((), ((), (Decimal(0),))):
        with pytest.raises(UserError, match="at least one ratio per stage"):
            Sparsity(stages)


def test_the_space_refuses_what_lies_off_its_grid() -> None:
    space = SparsitySpace()
    with pytest.raises(UserError, match=r"ratio 0.35 of 0.35/0/0,0,0/0 is outside the grid 0,0.1,.*,0.8"):
        space.parse([0.35, 0, 0, 0, 0, 0])
    with pytest.raises(UserError, match="outside the grid"):
        space.uniform(0.9)
    assert Sparsity.of(0.35, SWIN_T) not in space
    assert Sparsity.of(0.3, (2, 2)) not in space
    assert "0.3/0/0,0,0/0" not in space
    assert space.dense in space


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"grid": (0.2, 0.1)}, "increase strictly, got 0.2,0.1"),
        ({"grid": (0, 0.1, 0.1)}, "increase strictly"),
        ({"grid": ()}, "increase strictly"),
        ({"grid": (0, 1)}, "outside 0 <= ratio < 1"),
        ({"depths": ()}, "depths must be positive"),
        ({"depths": (2, 0)}, "depths must be positive"),
    ],
)
def test_impossible_spaces(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SparsitySpace(**arguments)


@given(stage_lists)
def test_repair_sorts_and_is_idempotent(stages: list[list[Decimal]]) -> None:
    repaired = repair(stages)
    assert repair(repaired.stages) == repaired
    assert [sorted(stage) for stage in stages] == [list(stage) for stage in repaired.stages]


@pytest.mark.parametrize(
    "space", [SMALL, SparsitySpace((1,)), SparsitySpace((4, 4), grid("0", "0.5")), SparsitySpace((2, 2), grid("0"))]
)
def test_length_iteration_and_levels_agree(space: SparsitySpace) -> None:
    everything = list(space)
    levels = space.all_levels()
    assert len(space) == len(everything) == len(set(everything)) == len(levels)
    assert [space.decode(row) for row in levels.tolist()] == everything
    assert [space.encode(sparsity) for sparsity in everything] == [tuple(row) for row in levels.tolist()]
    assert all(sparsity in space for sparsity in everything)


def test_swin_t_has_120285_configurations() -> None:
    space = SparsitySpace()
    levels = space.all_levels()
    assert len(space) == len(levels) == 120_285
    assert len(np.unique(levels, axis=0)) == 120_285
    assert space.layer_names == ("s1", "s2", "s3.1", "s3.2", "s3.3", "s4")


@given(swin_t_levels)
def test_decoding_repairs_and_encoding_reads_back(levels: list[int]) -> None:
    space = SparsitySpace()
    sparsity = space.decode(levels)
    assert sparsity in space
    assert space.encode(sparsity) == (*levels[:2], *sorted(levels[2:5]), levels[5])
    assert Sparsity.of(sparsity.floats, SWIN_T) == sparsity


@pytest.mark.parametrize("levels", [[0] * 5, [0] * 7, [0, 0, 0, 0, 0, 9], [0, -1, 0, 0, 0, 0]])
def test_levels_that_are_none(levels: list[int]) -> None:
    with pytest.raises(UserError, match="levels"):
        SparsitySpace().decode(levels)


@given(st.integers())
def test_samples_follow_the_seed_and_lie_in_the_space(seed: int) -> None:
    first, second = random.Random(seed), random.Random(seed)
    draws = [SMALL.sample(first) for _ in range(5)]
    assert draws == [SMALL.sample(second) for _ in range(5)]
    assert all(draw in SMALL for draw in draws)


def test_samples_reach_the_whole_space() -> None:
    rng = random.Random(0)
    space = SparsitySpace((2, 4), grid("0", "0.5", "0.8"))
    assert {space.sample(rng) for _ in range(500)} == set(space)


def test_kept_windows_are_counted_in_exact_arithmetic() -> None:
    assert kept_windows(10, ratio(0.8)) == 2  # in binary floats 10 * (1 - 0.8) is 1.999…
    assert kept_windows(10, ratio(np.float32(0.3))) == 7
    assert kept_windows(1, ratio(0.8)) == 1
    assert kept_windows(3, ratio("0.999999")) == 1


@given(st.integers(1, 10_000), st.integers(0, 9))
def test_kept_windows_equals_integer_arithmetic(windows: int, tenths: int) -> None:
    assert kept_windows(windows, ratio(tenths / 10)) == max(1, windows * (10 - tenths) // 10)


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        ((672, 672), (576, 144, 36, 9)),
        ((448, 448), (256, 64, 16, 4)),
        ((224, 224), (64, 16, 4, 1)),
        ((800, 1333), (29 * 48, 15 * 24, 8 * 12, 4 * 6)),
        ((1, 1), (1, 1, 1, 1)),
    ],
)
def test_windows_per_stage(size: tuple[int, int], windows: tuple[int, ...]) -> None:
    assert windows_per_stage(size) == windows


@given(swin_t_levels)
def test_kept_table_agrees_with_kept(levels: list[int]) -> None:
    space, windows = SparsitySpace(), windows_per_stage((448, 448))
    sparsity = space.decode(levels)
    table = space.kept_table(windows)
    assert table.shape == (6, 9)
    assert tuple(table[np.arange(6), space.encode(sparsity)]) == sparsity.kept(windows)


@pytest.mark.parametrize("windows", [(1, 1, 1), (4, 2, 1), (10, 3, 2), (100, 100, 100)])
def test_count_distinct_equals_brute_force(windows: tuple[int, ...]) -> None:
    assert SMALL.count_distinct(windows) == len({sparsity.kept(windows) for sparsity in SMALL})


def test_few_windows_make_few_distinct_configurations() -> None:
    space = SparsitySpace()
    assert space.count_distinct(windows_per_stage((672, 672))) == 120_285
    # The last stage's four windows can keep 4, 3, 2 or 1, the third's sixteen nine counts.
    assert space.count_distinct(windows_per_stage((448, 448))) == 9 * 9 * math.comb(11, 3) * 4


def test_importing_the_package_loads_no_heavy_package() -> None:
    heavy = {"torch", "optuna", "mmcv", "mmdet", "plotly", "rich"}
    code = f"import sys, sparsevit; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
