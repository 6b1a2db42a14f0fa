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
    early: whether what results are added to is read before the products, into registers.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int | None = None
    early: bool = False


FUSED_FEED_FORWARD = 128
"""Up to this many channels the feed-forward network is one kernel."""

HIDDEN_UNIT = 64
"""The fused feed-forward network takes hidden channels by so many at most."""


def feed_forward_tile(rows: int, channels: int) -> Tile:
    """Of the fused feed-forward network; columns are hidden channels."""
    if rows >= 65536 and channels <= 96:  # two programs to a multiprocessor, and at least two waves of them
        return Tile(128, HIDDEN_UNIT, 0, 8, 3, registers=128)
    return Tile(64, HIDDEN_UNIT, 0, 4, 2)


def linear_tile(rows: int, columns: int, depth: int) -> Tile:
    """Of a product of `rows` x `columns`, whose sum is taken in steps that divide `depth`.

    Measured on an H200 in passes of Swin-T, dense, at 30 % and at 60 %. There are few classes, as each is compiled once
    for each layer. What leaves room for the next kernel's programs beside it serves better than it does alone.
    """
    step = min(64, depth & -depth)
    narrow = min(64, _power(columns))
    if step < 64:  # the first stage: bound by memory, and sums are short
        return Tile(128, narrow, step, 4, 3, early=True)
    if depth <= 256:
        return Tile(128, narrow, step, 4, 2, early=True)
    if columns < 256 and columns % 128:  # a wide block would be half empty
        programs = -(-rows // 128) * -(-columns // narrow)
        return Tile(128, narrow, step, 4, 4 if programs <= 512 else 3, early=True)
    blocks = -(-rows // 128) * -(-columns // 128)
    if blocks >= 200:
        expands = columns >= 4 * depth  # and ends in GELU
        if blocks <= 264:
            if expands:  # the next kernel, of few programs, finds room beside one of these
                return Tile(128, 128, step, 8, 3 if depth > 512 else 4)
            return Tile(128, 128, step, 4, 3)
        return Tile(128, 128, step, 8 if expands or blocks < 400 else 4, 3)
    if blocks >= 130:
        return Tile(64, 128, step, 4, 3, early=depth > 512)
    if blocks >= 80:  # just one wave
        return Tile(128, 128, step, 8, 4, early=True) if depth > 512 else Tile(128, 64, step, 4, 3, early=True)
    if depth > 1024 and depth % 128 == 0 and (blocks < 45 or depth > 2048):
        return Tile(64, 64, 128, 4, 3, early=True)
    if blocks < 45:
        return Tile(64, 64, step, 4, 4, early=True)
    return Tile(64, 128, step, 8, 3, early=True) if depth > 512 else Tile(64, 64, step, 4, 2, early=True)


def merge_tile(rows: int, columns: int, depth: int) -> Tile:
    """Of merging, as `linear_tile`: the fewer programs a multiprocessor holds, the further ahead each of them loads.

    Measured on an H200 for Swin-T's three mergings at 672x672 in batch 4; other classes by what registers and shared
    memory leave room for.
    """
    step = min(64, depth & -depth)
    if columns < 256 and columns % 128:
        return Tile(128, min(256, _power(columns)), step, 8 if columns > 32 else 4, 3)
    blocks = -(-rows // 128) * -(-columns // 128)
    if blocks >= 250:
        return Tile(128, 128, step, 8, 3)
    if blocks >= 130:
        return Tile(64, 128, step, 4, 3)
    if blocks >= 66:
        return Tile(64, 256, step, 8, 4)
    return Tile(64, 64, step, 4, 5)


def attention_choice(heads: int) -> dict[str, int]:
    """How many programs the attention kernel starts, and how deep its pipeline is."""
    if heads <= 6:
        return {"programs": 528 if heads == 6 else 1056, "stages": 3}
    return {"programs": 528 if heads >= 24 else 1056, "stages": 2}


def _power(value: int) -> int:
    return max(16, 1 << (value - 1).bit_length())
