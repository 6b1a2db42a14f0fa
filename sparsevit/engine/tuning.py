"""Block sizes of the kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """What one program of a matrix kernel works on.

    rows, columns: of the output.
    depth: of one step along the sum.
    warps: per program.
    stages: of the pipeline of loads.
    registers: per thread at most, so that more programs share a multiprocessor; None leaves it to the compiler.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int | None = None


FUSED_ATTENTION = 0
"""Up to this many channels the attention half of a block is one kernel."""

FUSED_FEED_FORWARD = 192
"""Up to this many channels the feed-forward network is one kernel."""

HIDDEN_UNIT = 64
"""The fused feed-forward network takes hidden channels by so many at most."""

WINDOW_BLOCK = Tile(rows=64, columns=0, depth=0, warps=4, stages=2)

_PROCESSORS = 132


def linear_tile(rows: int, columns: int, depth: int) -> Tile:
    """Of a product of `rows` x `columns`, whose sum is taken in steps that divide `depth`."""
    step = min(64, depth & -depth)
    if -(-rows // 128) * -(-columns // 128) >= _PROCESSORS:
        return Tile(128, min(128, _power(columns)), step, 8, 3)
    return Tile(64, min(64, _power(columns)), step, 4, 4)


def feed_forward_tile(rows: int, channels: int) -> Tile:
    """Of the fused feed-forward network."""
    if channels <= 96:
        return Tile(64, HIDDEN_UNIT, 0, 4, 2, 128)
    return Tile(64, 32, 0, 4, 2)


def attention_programs(rows: int) -> int:
    """How many programs the attention kernel starts."""
    return 4 * _PROCESSORS


def _power(value: int) -> int:
    return max(16, 1 << (value - 1).bit_length())
