"""Block sizes suit every layer, not only those they were measured on."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparsevit.engine.kernels.sums import SLOT
from sparsevit.engine.tuning import (
    SPARE,
    Tile,
    chains_feed_forward,
    feed_forward_tile,
    fuses_feed_forward,
    holds_feed_forward,
    linear_tile,
    merge_tile,
    pair_tile,
    shares_feed_forward,
)

SHARED_MEMORY = 227 * 1024  # bytes that a program may have on an H100 or H200
REGISTERS = 65536  # of a multiprocessor

rows = st.integers(1, 2_000_000)
channels = st.integers(1, 400).map(lambda number: 16 * number)


def fits(tile: Tile, columns: int, depth: int) -> bool:
    loads = (tile.rows + tile.columns) * tile.depth * 2 * tile.stages
    return (
        depth % tile.depth == 0
        and min(SLOT, columns) <= tile.columns
        and loads <= SHARED_MEMORY
        and tile.rows * tile.columns <= REGISTERS // 2
    )


@given(rows=rows, columns=channels, depth=channels, adds=st.booleans())
@example(rows=1000, columns=288, depth=288, adds=True)
def test_products(rows: int, columns: int, depth: int, adds: bool) -> None:
    tile = linear_tile(rows, columns, depth, adds=adds)
    assert fits(tile, columns, depth)
    assert tile.columns % 3 == 0 or tile.columns == tile.power
    assert not adds or tile.columns % SLOT == 0 or tile.columns >= columns
    held = tile.rows * tile.columns // (32 * tile.warps)  # values of a thread
    assert not tile.early or held <= 128


@given(tile=st.builds(Tile, *[st.integers(1, 8)] * 5), shared=st.integers(0, 1 << 18), step=st.integers(1, 1 << 16))
def test_pipelines_are_as_deep_as_there_is_room(tile: Tile, shared: int, step: int) -> None:
    stages = tile.within(shared, step, kept=500)
    assert 1 <= stages <= tile.stages
    assert stages == 1 or stages * step + 500 < shared
    assert stages == tile.stages or (stages + 1) * step + 500 + SPARE > shared


@given(rows=rows, columns=channels, depth=channels)
def test_merging(rows: int, columns: int, depth: int) -> None:
    tile = merge_tile(rows, columns, depth)
    assert fits(tile, columns, depth)
    assert tile.columns % 3 == 0 or tile.columns == tile.power


@pytest.mark.parametrize("channels", [32, 96, 128])
def test_few_rows_are_spread_over_more_programs(channels: int) -> None:
    assert feed_forward_tile(1_000, channels).rows <= feed_forward_tile(1_000_000, channels).rows
    assert linear_tile(500, 768, 768, adds=True).rows < linear_tile(100_000, 768, 768, adds=True).rows


def test_weights_are_held_where_every_multiprocessor_has_rows() -> None:
    assert holds_feed_forward(112_896)
    assert not holds_feed_forward(8_000)


def test_feed_forward_of_the_second_stage_is_one_kernel_where_rows_fill_its_waves() -> None:
    assert fuses_feed_forward(28_224, 192)
    assert fuses_feed_forward(132 * 128, 192)
    assert not fuses_feed_forward(132 * 128 + 1, 192)
    assert not fuses_feed_forward(11_172, 192)
    assert all(fuses_feed_forward(rows, 192) for rows in range(80_000, 400_000, 1000))


@given(rows=rows)
def test_feed_forward_of_few_channels_is_one_kernel_and_of_many_two(rows: int) -> None:
    assert fuses_feed_forward(rows, 96)
    assert not fuses_feed_forward(rows, 256)


def test_feed_forward_is_chained_where_blocks_of_128_fill_half_a_wave_to_a_whole() -> None:
    assert all(map(chains_feed_forward, (8_428, 11_172, 14_112)))
    assert [blocks for blocks in range(400) if chains_feed_forward(128 * blocks)] == list(range(66, 133))
    assert chains_feed_forward(65 * 128 + 1)
    assert not chains_feed_forward(132 * 128 + 1)


def test_feed_forward_of_few_rows_is_shared_where_blocks_of_64_fill_most_of_a_wave() -> None:
    assert shares_feed_forward(2_744)
    assert [blocks for blocks in range(200) if shares_feed_forward(64 * blocks)] == [40, 41, 42, 43, 44]
    assert shares_feed_forward(39 * 64 + 1)
    assert not shares_feed_forward(44 * 64 + 1)


@given(windows=st.integers(1, 100_000), heads=st.integers(1, 32).map(lambda number: 2 * number))
def test_pairs_of_heads(windows: int, heads: int) -> None:
    tile = pair_tile(windows, heads, 32 * heads)
    assert tile is None or fits(tile, tile.columns, 32 * heads)


def test_pairs_of_heads_attend_in_one_kernel_where_that_is_faster() -> None:
    assert all(pair_tile(windows, 6, 192) for windows in (1, 100, 10_000))
    assert [pair_tile(4 * windows, 12, 384) is not None for windows in (8, 11, 14, 18, 22, 26, 36)] == [
        False, True, True, False, True, True, False
    ]  # fmt: skip
    assert pair_tile(88, 12, 384) != pair_tile(56, 12, 384)
    assert pair_tile(12, 24, 768)
    assert not pair_tile(36, 24, 768)
