"""Rows held on the chip as one or three blocks of channels, as Triton's blocks are powers of 2."""

from __future__ import annotations

import triton
import triton.language as tl

MIN_PART = 16


def parts_of(channels: int) -> int:
    """Channels of a block: all, or a third of them.

    Raises:
        ValueError: if neither is a power of 2 of at least 16; `splits` tells.
    """
    for part in (channels, channels // 3):
        if channels % part == 0 and part >= MIN_PART and part & (part - 1) == 0:
            return part
    raise ValueError(f"{channels} channels are neither a power of 2 nor three times one")


def splits(channels: int) -> bool:
    """Whether `parts_of` has an answer."""
    try:
        parts_of(channels)
    except (ValueError, ZeroDivisionError):
        return False
    return True


@triton.jit
def normalised(at, real, C: tl.constexpr, PART: tl.constexpr, EPS: tl.constexpr):
    """Rows at the pointers `at`, normalised over their C channels: three blocks, or one and two that stand for nothing.

    What is not `real` counts as 0.
    """
    x0 = tl.load(at, mask=real, other=0.0)
    wide0 = x0.to(tl.float32)
    total = tl.sum(wide0, 1)
    if PART < C:
        wide1 = tl.load(at + PART, mask=real, other=0.0).to(tl.float32)
        wide2 = tl.load(at + 2 * PART, mask=real, other=0.0).to(tl.float32)
        total += tl.sum(wide1, 1) + tl.sum(wide2, 1)
    else:
        wide1 = wide0
        wide2 = wide0
    mean = (total / C)[:, None]
    wide0 -= mean
    squares = tl.sum(wide0 * wide0, 1)
    if PART < C:
        wide1 -= mean
        wide2 -= mean
        squares += tl.sum(wide1 * wide1, 1) + tl.sum(wide2 * wide2, 1)
    deviation = tl.rsqrt(squares / C + EPS)[:, None]
    y0 = (wide0 * deviation).to(x0.dtype)
    y1 = (wide1 * deviation).to(x0.dtype)
    y2 = (wide2 * deviation).to(x0.dtype)
    return y0, y1, y2
