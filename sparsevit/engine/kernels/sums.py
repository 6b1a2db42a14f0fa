"""What rows of a token buffer carry with them, in slots: sum and sum of squares, and magnitude where a stage begins.

Whoever writes a row leaves sums behind, so that the norm that comes next needs no pass of its own. A slot belongs to 64
channels; who has the whole row at hand fills the first slot and clears the others. Who writes the first rows of a stage
leaves sums of absolute values, by which windows are ranked: one for each block of columns it works in, and those of a
block side by side, as windows are scored from runs of tokens. R rows, C channels, S slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOT = 64


def slots(channels: int) -> int:
    """How many slots a row of so many channels has."""
    return -(-channels // SLOT)


@triton.jit
def load_each(sums, row, valid, C: tl.constexpr):
    """Sums and sums of squares of rows, a vector for each slot, of both as one value of 64 bits: see `add_up`.

    Of a block of all slots the compiler gives parts of a row to several warps, which then exchange them where a product
    waits for it.
    """
    S: tl.constexpr = (C + 63) // 64
    both = sums.to(tl.pointer_type(tl.int64), bitcast=True) + row * S
    found = ()
    for slot in tl.static_range(S):
        found += (tl.load(both + slot, mask=valid, other=0),)  # type: ignore[assignment]
    return found


@triton.jit
def add_up(found):
    """Sums and sums of squares of rows over the slots that `load_each` found."""
    total = 0.0
    squares = 0.0
    for slot in tl.static_range(len(found)):
        total += found[slot].to(tl.int32).to(tl.float32, bitcast=True)
        squares += (found[slot] >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return total, squares


@triton.jit
def store_sums(sums, row, valid, total, squares, C: tl.constexpr, P: tl.constexpr):
    """Write sums of whole rows."""
    S: tl.constexpr = (C + 63) // 64
    slot = tl.arange(0, P)
    at = sums + (row[:, None] * S + slot[None, :]) * 2
    mask = valid[:, None] & (slot < S)[None, :]
    tl.store(at, tl.where((slot == 0)[None, :], total[:, None], 0.0), mask=mask)
    tl.store(at + 1, tl.where((slot == 0)[None, :], squares[:, None], 0.0), mask=mask)


@triton.jit
def store_block_sums(sums, row, valid, values, first, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Write sums of BN channels of rows from channel `first` on; BN is a multiple of 64, or no less than C."""
    S: tl.constexpr = (C + 63) // 64
    WIDTH: tl.constexpr = min(BN, 64)
    parts = tl.reshape(values, (BM, BN // WIDTH, WIDTH))
    slot = first // 64 + tl.arange(0, BN // WIDTH)
    at = sums + (row[:, None] * S + slot[None, :]) * 2
    mask = valid[:, None] & (slot < S)[None, :]
    tl.store(at, tl.sum(parts, 2), mask=mask)
    tl.store(at + 1, tl.sum(parts * parts, 2), mask=mask)


def sums_of(x: Tensor) -> Tensor:
    """Sums of rows `x`, shape `(R, C)`, as shape `(R, S, 2)`: all in the first slot."""
    out = x.new_zeros(len(x), slots(x.shape[1]), 2)
    out[:, 0] = torch.stack([x.sum(1), x.square().sum(1)], 1)
    return out


def magnitudes_of(x: Tensor, slots: int) -> Tensor:
    """Sums of absolute values of rows `x`, shape `(R, C)`, as shape `(slots, R)`: all in the first slot."""
    out = x.new_zeros(slots, len(x))
    out[0] = x.abs().sum(1)
    return out
