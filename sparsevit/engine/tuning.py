"""Block sizes of the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    """What one program of a matrix kernel works on.

    rows, columns: of the output; columns are a power of 2, or three times one.
    depth: of one step along the sum.
    warps: per program.
    stages: of the pipeline of loads.
    registers: per thread at most, so that more programs share a multiprocessor; None leaves it to the compiler, and so
        do `maps` where there are none, as loads then need more.
    early: whether what results are added to is read before the products; of no account where they are added to nothing.
    maps: whether blocks of weights, and of rows that lie together, go by tensor maps, where there are any.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int | None = None
    early: bool = False
    maps: bool = False

    @property
    def power(self) -> int:
        """Columns of the greater part: a block is a power of 2 wide, or two blocks are, as 128 and 64."""
        return 1 << (self.columns.bit_length() - 1)

    def within(self, shared: int, step: int, kept: int = 0) -> int:
        """Stages for which there is room: of `step` bytes each in `shared` bytes, of which others take `kept`."""
        return max(1, min(self.stages, (shared - kept - SPARE) // step))


SPARE = 1024
"""Bytes of shared memory that a pipeline leaves to barriers and sums."""


@dataclass(frozen=True)
class WindowChoice:
    """How attention is shared out.

    each: windows that a program takes in turn, of one head.
    warps, stages, registers: as of `Tile`.
    """

    each: int
    warps: int = 4
    stages: int = 2
    registers: int | None = None


MULTIPROCESSORS = 132
"""Of an H100 or H200, which programs are shared out among."""

FUSED_ATTENTION = 96
"""Up to this many channels queries, keys and values are found and attended to in one kernel, which holds a head's
weights."""

ALWAYS_PAIRS = 256
"""Up to this many channels they are by pairs of heads, whatever the number of windows."""

LARGEST_PAIRS = 512
"""Up to this many channels they are where programs fill their waves, and of more where windows are few."""

FUSED_FEED_FORWARD = 128
"""Up to this many channels the feed-forward network is one kernel, whatever the number of rows."""

LARGEST_FUSED_FEED_FORWARD = 192
"""Up to this many channels it is one where rows fill its waves."""

HIDDEN_UNIT = 64
"""The fused feed-forward network takes hidden channels by so many at most."""


def fuses_feed_forward(rows: int, channels: int) -> bool:
    """Whether the feed-forward network is one kernel.

    Of more than 128 channels a multiprocessor has room for one program of it, and a wave of them takes as long however
    many there are: two kernels are faster where many multiprocessors would have none. Measured on an H200 for 192
    channels: 28,224 rows in 84 % of two waves are faster in one kernel, 11,172 in 66 % of a wave in two.
    """
    waves = rows / (128 * MULTIPROCESSORS)
    return channels <= FUSED_FEED_FORWARD or (
        channels <= LARGEST_FUSED_FEED_FORWARD and waves >= 0.8 * math.ceil(waves)
    )


def feed_forward_tile(rows: int, channels: int) -> Tile:
    """Of the fused feed-forward network where weights are not held; columns are hidden channels."""
    if channels > FUSED_FEED_FORWARD:
        return Tile(128, HIDDEN_UNIT, 0, 8, 2)
    if rows >= 65536 and channels <= 96:  # two programs to a multiprocessor, and at least two waves of them
        return Tile(128, HIDDEN_UNIT, 0, 8, 3, registers=128)
    return Tile(64, HIDDEN_UNIT, 0, 4, 2)


HELD_FEED_FORWARD = Tile(128, HIDDEN_UNIT, 0, 8, 1)
"""Of the fused feed-forward network with its weights held; columns are hidden channels."""


def holds_feed_forward(rows: int) -> bool:
    """Whether there are rows enough for the weights to be held: a block of them for every multiprocessor."""
    return rows >= HELD_FEED_FORWARD.rows * MULTIPROCESSORS


CHAINED_ROWS = 128
"""Rows of a program of the chained feed-forward network."""


def chains_feed_forward(rows: int) -> bool:
    """Whether programs of the chained feed-forward network fill at least half of a wave, and no more than one.

    A program takes a multiprocessor to itself, and a wave of them takes as long however many there are: of fewer rows
    two kernels are faster. Measured on an H200 for 8,428 to 16,856 rows; more than one wave was not.
    """
    programs = math.ceil(rows / CHAINED_ROWS)
    return MULTIPROCESSORS // 2 <= programs <= MULTIPROCESSORS


SHARES = 3
"""Programs that share the hidden channels of a block of rows in the shared feed-forward network."""

SHARED_ROWS = 64
"""Of such a block."""


def shares_feed_forward(rows: int) -> bool:
    """Whether programs of the shared feed-forward network fill at least 9/10 of a wave, and no more than one.

    A program takes a multiprocessor to itself, and a wave of them takes as long however many there are: of fewer, some
    multiprocessors would have nothing to do, and one more would take another wave. Measured on an H200 for 2,744 rows
    alone.
    """
    programs = SHARES * math.ceil(rows / SHARED_ROWS)
    return 0.9 * MULTIPROCESSORS <= programs <= MULTIPROCESSORS


def linear_tile(rows: int, columns: int, depth: int, *, adds: bool) -> Tile:
    """Of a product of `rows` x `columns`, whose sum is taken in steps that divide `depth`.

    Measured on an H200 in passes of Swin-T: dense, at 30 % and 60 %, and in the published configurations; with tensor
    maps at 60 % and in the third of those. There are few classes, as each is compiled once for each layer. What leaves
    room for the next kernel's programs beside it serves better than it does alone.

    Args:
        adds: whether results are added to rows of the token buffer; whole slots of their sums are written then.
    """
    step = min(64, depth & -depth)
    narrow = min(64, _power(columns))
    if step < 64:  # the first stage: bound by memory, and sums are short
        if columns > 96 and columns % 96 == 0 and not adds:
            return Tile(128, 96, step, 4, 3)
        if columns == 96:
            return Tile(64, 96, step, 4, 3, early=True) if rows > 65536 else Tile(128, 96, step, 4, 2, early=True)
        return Tile(128, narrow, step, 4, 3, early=True)
    if depth <= 256:
        if columns >= 4 * depth and columns % 192 == 0 and rows <= 16384:
            return Tile(64, 192, step, 4, 2, maps=True)
        return Tile(128, narrow, step, 4, 3 if adds else 2, early=True, maps=True)
    if columns < 256 and columns % 128:  # a wide block would be half empty
        stages = 4 if _programs(rows, columns, 128, narrow) <= 512 else 3
        return Tile(128, narrow, step, 4, stages, early=True, maps=True)
    tall, wide = min(SHAPES, key=lambda shape: _clocks(rows, columns, depth, *shape))
    if _programs(rows, columns, tall, wide) <= MULTIPROCESSORS:
        return _one_each(rows, columns, depth, tall, wide)
    return (_adding if adds else _expanding)(rows, columns, depth, tall == wide == 128)


SHAPES = ((128, 128), (64, 128), (128, 64), (64, 64))


def _one_each(rows: int, columns: int, depth: int, tall: int, wide: int) -> Tile:
    """No more programs than multiprocessors.

    Each then takes more than half of a multiprocessor's shared memory: of less, several find room where the kernel
    before ends first, and multiprocessors where it ends last get none.
    """
    if tall == wide == 128:
        if columns % 192 == 0 and _programs(rows, columns, 64, 192) <= MULTIPROCESSORS:
            return Tile(64, 192, 64, 4, 5, early=True, maps=True)
        return Tile(128, 128, 64, 8, 4, early=True, maps=True)
    if tall != wide:
        return Tile(tall, wide, 64, 4, 5, early=True, maps=True)
    if depth % 128 == 0:
        return Tile(64, 64, 128, 4, 5 if depth > 1024 else 4, early=True, maps=True)
    return Tile(64, 64, 64, 4, 4, early=True, maps=True)


def _expanding(rows: int, columns: int, depth: int, square: bool) -> Tile:
    """Queries, keys and values, or hidden channels; `square` blocks are those that read least."""
    blocks = _programs(rows, columns, 128, 128)
    hidden = columns >= 4 * depth  # which a GELU follows
    if (
        not hidden
        and columns % 256 == 0
        and MULTIPROCESSORS // 2 < _programs(rows, columns, 128, 256) <= MULTIPROCESSORS
    ):
        return Tile(128, 256, 64, 8, 3, maps=True)
    if not square or blocks <= 200:
        one_wave = _programs(rows, columns, 64, 128) <= 3 * MULTIPROCESSORS
        return Tile(64, 128 if one_wave or columns % 192 else 192, 64, 4, 3, maps=True)
    if depth <= 512:
        if blocks <= 2 * MULTIPROCESSORS:
            return Tile(128, 128, 64, 8, 3, maps=True)
        if columns % 192 == 0:
            turns, lower = -(-blocks // (2 * MULTIPROCESSORS)), _programs(rows, columns, 64, 192)
            if lower <= turns * 2 * MULTIPROCESSORS and (turns > 2 or not hidden):
                return Tile(64, 192, 64, 4, 2 if turns > 2 or lower <= 3 * MULTIPROCESSORS else 3, maps=True)
    return Tile(128, 128, 64, 8 if hidden or blocks < 400 else 4, 3, maps=True)


def _adding(rows: int, columns: int, depth: int, square: bool) -> Tile:
    """What is added to rows of the token buffer; `square` as for `_expanding`."""
    blocks = _programs(rows, columns, 128, 128)
    if blocks > 2 * MULTIPROCESSORS:
        return Tile(128, 128, 64, 8 if blocks < 400 else 4, 3, maps=True)
    if columns % 192 == 0 and _programs(rows, columns, 64, 192) <= 2 * MULTIPROCESSORS:
        return Tile(64, 192, 64, 4, 3, early=True, maps=True)
    if depth <= 512 and square:
        return Tile(128, 128, 64, 4, 2, early=True, maps=True)
    if blocks >= 200:
        return Tile(128, 128, 64, 4, 3, maps=True)
    return Tile(64, 128, 64, 4, 3, early=True, maps=True)


def _programs(rows: int, columns: int, tall: int, wide: int) -> int:
    return -(-rows // tall) * -(-columns // wide)


def _clocks(rows: int, columns: int, depth: int, tall: int, wide: int) -> int:
    """By estimate, of the busiest multiprocessor: 64 bytes read in each, and 32 written."""
    share = -(-_programs(rows, columns, tall, wide) // MULTIPROCESSORS)
    return share * ((tall + wide) * depth // 32 + tall * wide // 16)


def merge_tile(rows: int, columns: int, depth: int) -> Tile:
    """Of merging, as `linear_tile`: the fewer programs a multiprocessor holds, the further ahead each of them loads.

    Measured on an H200 for Swin-T's three mergings at 672x672 in batch 4; other classes by what registers and shared
    memory leave room for.
    """
    step = min(64, depth & -depth)
    if columns == 192:
        return Tile(64, 192, step, 4, 3, maps=True)
    if columns < 256 and columns % 128:
        return Tile(128, min(256, _power(columns)), step, 8 if columns > 32 else 4, 3)
    blocks = -(-rows // 128) * -(-columns // 128)
    if blocks >= 250:
        return Tile(128, 128, step, 8, 3)
    if blocks >= 130:
        return Tile(64, 128, step, 4, 3)
    if blocks >= 66:
        return Tile(64, 192, step, 4, 5, maps=True) if columns % 192 == 0 else Tile(64, 256, step, 8, 4)
    return Tile(64, 64, step, 4, 5)


def attention_choice(windows: int, heads: int) -> tuple[int, int]:
    """How many programs the attention kernel starts, and how deep its pipeline is."""
    if windows * heads <= 12 * MULTIPROCESSORS:  # a window to a program
        return windows * heads, 2
    if heads <= 6:
        return 8 * MULTIPROCESSORS, 3
    return (4 if heads >= 24 else 8) * MULTIPROCESSORS, 2


def window_choice(windows: int, heads: int) -> WindowChoice:
    """Of attention in one kernel with its queries, keys and values.

    Three programs of 168 registers have room on a multiprocessor. They come in one wave or in two, whichever ends
    first; where both do and windows are many, two are faster, as measured on an H200.
    """
    slots = max(1, 3 * MULTIPROCESSORS // heads)
    one, two = -(-windows // slots), -(-windows // (2 * slots))
    return WindowChoice(two if 2 * two <= one and windows > 10 * slots else one, registers=168)


def pair_tile(windows: int, heads: int, channels: int) -> Tile | None:
    """Of attention in one kernel with its queries, keys and values, by pairs of heads; None where two are faster.

    Rows are those of a window. Three programs of 168 registers have room on a multiprocessor, or four of 128, which
    put some by in memory. As measured on an H200 in passes of Swin-T: of 192 channels one kernel is faster for any
    number of windows, of 384 where programs fill their waves, of 768 in one wave of two to a multiprocessor, as sums
    are long.
    """
    tile = Tile(64, 6 * channels // heads, 32, 4, 3, registers=168, maps=True)
    programs = windows * heads // 2
    if channels <= ALWAYS_PAIRS:
        return replace(tile, stages=4)
    if channels > LARGEST_PAIRS:
        return replace(tile, depth=64) if programs <= 2 * MULTIPROCESSORS else None
    threes, fours = programs / (3 * MULTIPROCESSORS), programs / (4 * MULTIPROCESSORS)  # waves
    if 0.9 <= fours <= 1:
        return replace(tile, registers=128)
    if 0.5 <= threes <= 1 or (fours > 1 and threes >= 0.78 * math.ceil(threes)):
        return tile
    return None


def _power(value: int) -> int:
    return max(16, 1 << (value - 1).bit_length())
