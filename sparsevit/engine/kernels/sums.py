"""What every row of a token buffer carries for the norm that comes next: its sum and its sum of squares, in slots.

Whoever writes a row leaves them behind, so that no norm needs a pass of its own. A slot belongs to 64 channels; who has
the whole row at hand fills the first slot and clears the others. R rows, C channels, S slots.
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
def load_sums(sums, row, valid, C: tl.constexpr, P: tl.constexpr):
    """Sum and sum of squares of rows; 0 where not `valid`. P is a power of 2 of at least S."""
    S: tl.constexpr = (C + 63) // 64
    slot = tl.arange(0, P)
    at = sums + (row[:, None] * S + slot[None, :]) * 2
    mask = valid[:, None] & (slot < S)[None, :]
    return tl.sum(tl.load(at, mask=mask, other=0.0), 1), tl.sum(tl.load(at + 1, mask=mask, other=0.0), 1)


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
