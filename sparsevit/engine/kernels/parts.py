"""Rows held on the chip as one or two blocks of channels, as Triton's blocks are powers of 2: 96 are 64 and 32."""

from __future__ import annotations

import triton
import triton.language as tl

MIN_PART = 16


def parts_of(channels: int) -> tuple[int, int]:
    """Channels of the greater block and of the smaller one, which may be none.

    Raises:
        ValueError: if the smaller is neither none nor a power of 2 of at least 16; `splits` tells.
    """
    part = 1 << (channels.bit_length() - 1)
    rest = channels - part
    if part >= MIN_PART and (rest == 0 or (rest >= MIN_PART and rest & (rest - 1) == 0)):
        return part, rest
    raise ValueError(f"{channels} channels are no power of 2 of at least {MIN_PART}, nor the sum of two")


def splits(channels: int) -> bool:
    """Whether `parts_of` has an answer."""
    try:
        parts_of(channels)
    except ValueError:
        return False
    return True


@triton.jit
def read_part(x, row, first, C: tl.constexpr, PART: tl.constexpr):
    """PART channels of rows from channel `first` on; 0 where a row is negative, which is padding."""
    c = first + tl.arange(0, PART)
    return tl.load(x + row.to(tl.int64)[:, None] * C + c[None, :], mask=(row >= 0)[:, None], other=0.0)


@triton.jit
def normalised(x0, x1, C: tl.constexpr, REST: tl.constexpr, EPS: tl.constexpr):
    """Rows normalised over their C channels, of which `x1` are REST; if none are, it stands for nothing."""
    wide0 = x0.to(tl.float32)
    wide1 = x1.to(tl.float32)
    mean = tl.sum(wide0, 1)
    if REST:
        mean += tl.sum(wide1, 1)
    mean = (mean / C)[:, None]
    squares = tl.sum((wide0 - mean) * (wide0 - mean), 1)
    if REST:
        squares += tl.sum((wide1 - mean) * (wide1 - mean), 1)
    deviation = tl.rsqrt(squares / C + EPS)[:, None]
    return ((wide0 - mean) * deviation).to(x0.dtype), ((wide1 - mean) * deviation).to(x0.dtype)
