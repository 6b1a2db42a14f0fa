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

from sparsevit.engine.kernels.dependent import begin, launch_options, prefetch, prefetch_own
from sparsevit.engine.kernels.folded import Weights, normed, normed_product
from sparsevit.engine.kernels.linear import pipeline
from sparsevit.engine.kernels.maps import has_maps, out_blocks, parameters, prefetch_map, weight_blocks
from sparsevit.engine.kernels.sums import SLOT, magnitudes_of, slots, store_block_sums, sums_of
from sparsevit.engine.tuning import Tile


@triton.jit
def pair_sums(sums, token, valid, both, C: tl.constexpr, P: tl.constexpr):
    """All slots of tokens and, where `both`, of those after them; 0 elsewhere. P is a power of 2 of at least 4 S."""
    WIDTH: tl.constexpr = (C + 63) // 64 * 2
    j = tl.arange(0, P)[None, :]
    mask = valid[:, None] & ((j < WIDTH) | (both[:, None] & (j < 2 * WIDTH)))
    return tl.load(sums + token[:, None] * WIDTH + j, mask=mask, other=0.0)


@triton.jit
def _finish(
    acc,
    first,
    m,
    inside,
    total,
    squares,
    bias,
    column_sums,
    out,
    out_sums,
    out_blocks,
    out_row,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    MAPS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """From sums of products to tokens and their sums, for BN columns from `first` on; their magnitudes."""
    n = first + tl.arange(0, BN)
    if NORM:
        of_columns = tl.load(column_sums + n, mask=n < N, other=0.0)
        acc = normed(acc, total, squares, of_columns, K, EPS)
    acc += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    tokens = acc.to(out.dtype.element_ty)
    if MAPS:
        out_blocks.store([out_row, first], tokens)
    else:
        mask = inside[:, None] & (n[None, :] < N)
        tl.store(out + m.to(tl.int64)[:, None] * N + n[None, :], tokens, mask=mask)
    store_block_sums(out_sums, m, inside, acc, first, N, BM, BN)
    return tl.sum(tl.abs(acc), 1)  # not yet rounded: adding up values of 16 bits takes three times the instructions


@triton.jit(do_not_specialize=["rows", "height", "width"])
def _merge(
    x,
    weight,
    bias,
    column_sums,
    sums,
    out,
    out_sums,
    out_magnitudes,
    weight_blocks,
    rest_blocks,
    out_blocks,
    out_rest_blocks,
    rows,
    height,
    width,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    REST: tl.constexpr,
    BK: tl.constexpr,
    P: tl.constexpr,
    ODD: tl.constexpr,
    MAGNITUDES: tl.constexpr,
    MAPS: tl.constexpr,
    WEIGHT_MAP: tl.constexpr,
    REST_MAP: tl.constexpr,
    OUT_MAP: tl.constexpr,
    OUT_REST_MAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    prefetch_map(WEIGHT_MAP, DEPENDENT)
    prefetch_map(REST_MAP, DEPENDENT)
    prefetch_map(OUT_MAP, DEPENDENT)
    prefetch_map(OUT_REST_MAP, DEPENDENT)
    C: tl.constexpr = K // 4
    columns: tl.constexpr = (N + BN + REST - 1) // (BN + REST)
    first = tl.program_id(0) % columns * (BN + REST)
    first_row = tl.program_id(0) // columns * BM
    m = first_row + tl.arange(0, BM)
    n = first + tl.arange(0, BN)
    inside = m < rows
    out_width = (width + 1) // 2
    out_row = m // out_width  # of all images
    left = (m - out_row * out_width) * 2
    image = out_row // ((height + 1) // 2)
    y = (out_row - image * ((height + 1) // 2)) * 2
    corner = (image * height + y) * width + left
    below = inside & (y + 1 < height)
    beside = left + 1 < width
    prefetch(weight, K * N, DEPENDENT)
    prefetch_own(bias, first, BN + REST, N, DEPENDENT)
    if NORM:
        prefetch_own(column_sums, first, BN + REST, N, DEPENDENT)
    begin(DEPENDENT)
    if NORM:
        upper = pair_sums(sums, corner, inside, beside, C, P)
        lower = pair_sums(sums, corner + width, below, beside, C, P)

    k = tl.arange(0, BK)
    read_x = x + corner.to(tl.int64)[:, None] * C + k[None, :]
    read_weight = weight + k[:, None] * N + n[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    if REST:
        n_rest = first + BN + tl.arange(0, REST)
        read_rest = weight + k[:, None] * N + n_rest[None, :]
        rest = tl.zeros((BM, REST), tl.float32)
    for step in range(K // BK):  # neither the two rows of tokens nor, in an odd width, two tokens share a step
        down = step * BK // (2 * C)
        valid = inside & (below | (down == 0))
        if ODD:
            valid &= beside | (step * BK // C % 2 == 0)
        a = tl.load(read_x + (step * BK + down * (width - 2) * C), mask=valid[:, None], other=0.0)
        if MAPS:
            b = weight_blocks.load([step * BK, first])
        else:
            b = tl.load(read_weight + step * BK * N, mask=n[None, :] < N, other=0.0)
        if REST:
            if MAPS:
                c = rest_blocks.load([step * BK, first + BN])
            else:
                c = tl.load(read_rest + step * BK * N, mask=n_rest[None, :] < N, other=0.0)
        acc = tl.dot(a, b, acc)
        if REST:
            rest = tl.dot(a, c, rest)

    total = 0.0
    squares = 0.0
    if NORM:
        both = upper + lower
        is_square = (tl.arange(0, P) % 2 == 1)[None, :]
        total = tl.sum(tl.where(is_square, 0.0, both), 1)
        squares = tl.sum(tl.where(is_square, both, 0.0), 1)
    magnitude = _finish(
        acc, first, m, inside, total, squares, bias, column_sums, out, out_sums, out_blocks, first_row,
        N, K, NORM, EPS, MAPS, BM, BN,
    )  # fmt: skip
    if REST:
        magnitude += _finish(
            rest, first + BN, m, inside, total, squares, bias, column_sums, out, out_sums, out_rest_blocks, first_row,
            N, K, NORM, EPS, MAPS, BM, REST,
        )  # fmt: skip
    if MAGNITUDES:
        tl.store(out_magnitudes + first // (BN + REST) * rows + m, magnitude, mask=inside)


def joined_channels(size: tuple[int, int], channels: int) -> int:
    """How many channels of each row of joined tokens lie together, and are there or not: of two tokens, where even."""
    return channels * (1 if size[1] % 2 else 2)


def merge(
    x: Tensor,
    sums: Tensor,
    size: tuple[int, int],
    weights: Weights,
    out: Tensor,
    out_sums: Tensor,
    out_magnitudes: Tensor | None,
    tile: Tile,
) -> None:
    """Norm and linear layer of 2 x 2 joined tokens; what lies beyond the map's edge is 0.

    Args:
        x: tokens of maps of `size` (height, width), shape `(B * H * W, K / 4)`.
        sums, out_sums: of the rows of `x`, which are read, and of `out`, which are written; see `sums.py`.
        out_magnitudes: of the rows of `out` before they are rounded, which are written, shape `(S, M)`, a slot for each
            block of the tile's columns; wanted where windows are ranked next.
        weights: in the order (row, column, channel) of the 2 x 2 patch.
        out: shape `(M, N)`, M being `B * ceil(H / 2) * ceil(W / 2)`.
        tile: `depth` divides `joined_channels`.
    """
    k, n = weights.weight.shape
    assert tile.columns >= min(SLOT, n)
    assert joined_channels(size, k // 4) % tile.depth == 0
    assert out_magnitudes is None or len(out_magnitudes) == triton.cdiv(n, tile.columns)
    maps = tile.maps and has_maps(x)
    grid = (triton.cdiv(out.shape[0], tile.rows) * triton.cdiv(n, tile.columns),)
    of_weight = weight_blocks(weights.weight, tile, maps)
    of_out = out_blocks(out, tile) if maps else (out, out)
    weight_map, rest_map, out_map, out_rest_map = parameters("_merge", 8, *of_weight, *of_out)
    _merge[grid](
        x,
        weights.weight,
        weights.bias,
        weights.column_sums,
        sums,
        out,
        out_sums,
        out_sums if out_magnitudes is None else out_magnitudes,
        *of_weight,
        *of_out,
        out.shape[0],
        *size,
        N=n,
        K=k,
        NORM=weights.eps is not None,
        EPS=weights.eps or 0.0,
        BM=tile.rows,
        BN=tile.power,
        REST=tile.columns - tile.power,
        BK=tile.depth,
        P=triton.next_power_of_2(4 * slots(k // 4)),
        ODD=size[1] % 2 == 1,
        MAGNITUDES=out_magnitudes is not None,
        MAPS=maps,
        WEIGHT_MAP=weight_map,
        REST_MAP=rest_map,
        OUT_MAP=out_map,
        OUT_REST_MAP=out_rest_map,
        **launch_options(x),
        num_warps=tile.warps,
        num_stages=pipeline(tile, x),
        maxnreg=tile.registers,
    )


def merge_reference(
    x: Tensor,
    sums: Tensor,
    size: tuple[int, int],
    weights: Weights,
    out: Tensor,
    out_sums: Tensor,
    out_magnitudes: Tensor | None,
    tile: Tile,
) -> None:
    """What `merge` computes, in plain PyTorch and the precision of `x`."""
    height, width = size
    maps = F.pad(x.view(-1, height, width, x.shape[1]), (0, 0, 0, width % 2, 0, height % 2))
    joined = torch.cat([maps[:, down::2, right::2] for down in (0, 1) for right in (0, 1)], dim=-1)
    out.copy_(normed_product(joined.reshape(out.shape[0], -1), weights))
    out_sums.copy_(sums_of(out))
    if out_magnitudes is not None:
        out_magnitudes.copy_(magnitudes_of(out, len(out_magnitudes)))
