"""Patch merging: 2 x 2 tokens joined, normed and put through a linear layer, read where they lie.

H W height and width of the map in tokens, K channels of four joined tokens, M joined tokens, N channels out. Norms are
folded into weights as in `linear.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.linear import Weights, normed, normed_product
from sparsevit.engine.kernels.sums import SLOT, load_sums, slots, store_block_sums, sums_of
from sparsevit.engine.tuning import Tile


@triton.jit(do_not_specialize=["rows", "height", "width"])
def _merge(
    x,
    weight,
    bias,
    column_sums,
    sums,
    out,
    out_sums,
    rows,
    height,
    width,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    channels: tl.constexpr = K // 4
    columns: tl.constexpr = (N + BN - 1) // BN
    first = tl.program_id(0) % columns * BN
    m = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    n = first + tl.arange(0, BN)
    inside = m < rows
    out_width = (width + 1) // 2
    out_tokens = (height + 1) // 2 * out_width
    image = m // out_tokens
    y = (m - image * out_tokens) // out_width * 2
    left = (m - image * out_tokens) % out_width * 2
    corner = (image * height + y) * width + left

    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(K // BK):  # a step never crosses from one of the four tokens into the next
        k = step * BK + tl.arange(0, BK)
        part = step * BK // channels
        down = part // 2
        right = part - down * 2
        at = (corner + down * width + right).to(tl.int64) * channels - part * channels
        valid = inside & (y + down < height) & (left + right < width)
        a = tl.load(x + at[:, None] + k[None, :], mask=valid[:, None], other=0.0)
        b = tl.load(weight + k[:, None] * N + n[None, :], mask=n[None, :] < N, other=0.0)
        acc = tl.dot(a, b, acc)

    if NORM:
        total = tl.zeros((BM,), tl.float32)
        squares = tl.zeros((BM,), tl.float32)
        for part in tl.static_range(4):
            token = corner + part // 2 * width + part % 2
            valid = inside & (y + part // 2 < height) & (left + part % 2 < width)
            of_token = load_sums(sums, token, valid, channels, SLOTS)
            total += of_token[0]
            squares += of_token[1]
        acc = normed(acc, total, squares, column_sums, n, N, K, EPS)
    acc += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    mask = inside[:, None] & (n[None, :] < N)
    tl.store(out + m.to(tl.int64)[:, None] * N + n[None, :], acc.to(out.dtype.element_ty), mask=mask)
    store_block_sums(out_sums, m, inside, acc, first, N, BM, BN)


def merge(
    x: Tensor, sums: Tensor, size: tuple[int, int], weights: Weights, out: Tensor, out_sums: Tensor, tile: Tile
) -> None:
    """Norm and linear layer of 2 x 2 joined tokens; what lies beyond the map's edge is 0.

    Args:
        x: tokens of maps of `size` (height, width), shape `(B * H * W, K / 4)`.
        sums, out_sums: of the rows of `x`, which are read, and of `out`, which are written; see `sums.py`.
        weights: in the order (row, column, channel) of the 2 x 2 patch.
        out: shape `(M, N)`, M being `B * ceil(H / 2) * ceil(W / 2)`.
    """
    k, n = weights.weight.shape
    assert tile.columns >= min(SLOT, n)
    grid = (triton.cdiv(out.shape[0], tile.rows) * triton.cdiv(n, tile.columns),)
    _merge[grid](
        x,
        weights.weight,
        weights.bias,
        weights.column_sums,
        sums,
        out,
        out_sums,
        out.shape[0],
        *size,
        N=n,
        K=k,
        NORM=weights.eps is not None,
        EPS=weights.eps or 0.0,
        BM=tile.rows,
        BN=tile.columns,
        BK=tile.depth,
        SLOTS=triton.next_power_of_2(slots(k // 4)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def merge_reference(
    x: Tensor, sums: Tensor, size: tuple[int, int], weights: Weights, out: Tensor, out_sums: Tensor, tile: Tile
) -> None:
    """What `merge` computes, in plain PyTorch and the precision of `x`."""
    height, width = size
    maps = F.pad(x.view(-1, height, width, x.shape[1]), (0, 0, 0, width % 2, 0, height % 2))
    joined = torch.cat([maps[:, down::2, right::2] for down in (0, 1) for right in (0, 1)], dim=-1)
    out.copy_(normed_product(joined.reshape(out.shape[0], -1), weights))
    out_sums.copy_(sums_of(out))
