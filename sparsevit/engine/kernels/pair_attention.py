"""Norm, queries, keys and values, and attention of two heads of a window, for more channels than a program can hold.

Where channels are few, `window_attention.py` does the same of one head. Here a program goes through the channels in
steps, whose rows and weights are on their way, and then has all that two heads attend to. Two, as a window's rows are
then read half as often, and one head's sums and exponentials go on while the other's products do. N tokens in a window,
P tokens padded to a power of 2, h heads, D channels of a head, C channels (h * D), R rows of the token buffer.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.attention import kind_of, table_of
from sparsevit.engine.kernels.dependent import begin, launch_options, prefetch
from sparsevit.engine.kernels.folded import Weights, moments
from sparsevit.engine.kernels.linear import pipeline
from sparsevit.engine.kernels.maps import has_maps, parameters, prefetch_map, weight_blocks
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import add_up, load_each
from sparsevit.engine.kernels.window_attention import window_attention_reference
from sparsevit.engine.tuning import Tile


@triton.jit
def _apart(y, rest, P: tl.constexpr, D: tl.constexpr):
    """Queries, keys and values of one head, and of the other; each thread holds its part of all, so nothing moves."""
    y = tl.permute(tl.reshape(y, (P, 2, 2, D)), (0, 3, 2, 1))
    low, high = tl.split(y)
    q0, k0 = tl.split(low)
    v0, q1 = tl.split(high)
    k1, v1 = tl.split(tl.permute(tl.reshape(rest, (P, 2, D)), (0, 2, 1)))
    return q0, k0, v0, q1, k1, v1


@triton.jit
def _projected(y, mean, deviation, real, bias, padding, column_sums, n, PADS_AFTER: tl.constexpr):
    """From a product to queries, keys or values, of the columns `n`.

    What `normed` does, in two multiply-adds a value: an eighth of the program's instructions are these. In others it
    costs registers and with them room, see step 17 of benchmarks/engine_log.md.
    """
    shift = tl.load(bias + n)[None, :]
    if PADS_AFTER:
        shift = tl.where(real[:, None], shift, tl.load(padding + n)[None, :])
    return y * deviation[:, None] + (shift - (mean * deviation)[:, None] * tl.load(column_sums + n)[None, :])


@triton.jit
def _exponentials(scores):
    """Of logits in base 2, which are weights of attention but for a factor, and their sums."""
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return weights, tl.sum(weights, 1)


@triton.jit(do_not_specialize=["kept", "stride", "window_rows", "window_columns", "settled"])
def _pair_attention(
    x,
    weight,
    bias,
    padding,
    column_sums,
    sums,
    logits,
    table,
    windows,
    out,
    weight_blocks,
    rest_blocks,
    kept,
    stride,
    window_rows,
    window_columns,
    settled,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    P: tl.constexpr,
    BK: tl.constexpr,
    EPS: tl.constexpr,
    PADS_AFTER: tl.constexpr,
    MAPS: tl.constexpr,
    WEIGHT_MAP: tl.constexpr,
    REST_MAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    prefetch_map(WEIGHT_MAP, DEPENDENT)
    prefetch_map(REST_MAP, DEPENDENT)
    N: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0) % (HEADS // 2) * 2
    number = tl.program_id(0) // (HEADS // 2)
    n = tl.arange(0, P)
    image = number // kept
    here = image * stride + number - image * kept
    listed = table + here * N + n
    row = tl.load(listed, mask=(n < N) & (settled != 0), other=-1, cache_modifier=".cg")
    kind = 0
    if SHIFTED:
        window = tl.load(windows + here, cache_modifier=".cg")
        kind = kind_of(window, window_rows, window_columns)
    added0 = table_of(logits, head, kind, HEADS, P)
    prefetch(weight, 3 * C * C, DEPENDENT)
    begin(DEPENDENT)
    row = tl.where(settled != 0, row, tl.load(listed, mask=(n < N) & (settled == 0), other=-1))
    real = row >= 0
    of_slots = load_each(sums, row, real, C)

    k = tl.arange(0, BK)
    first = head * (3 * D)
    read_x = x + row.to(tl.int64)[:, None] * C + k[None, :]
    read_weight = weight + k[:, None] * (3 * C) + first
    acc = tl.zeros((P, 4 * D), tl.float32)
    rest = tl.zeros((P, 2 * D), tl.float32)
    for step in range(C // BK):
        a = tl.load(read_x + step * BK, mask=real[:, None], other=0.0)
        if MAPS:
            b = weight_blocks.load([step * BK, first])
            c = rest_blocks.load([step * BK, first + 4 * D])
        else:
            b = tl.load(read_weight + step * BK * (3 * C) + tl.arange(0, 4 * D)[None, :])
            c = tl.load(read_weight + step * BK * (3 * C) + (4 * D + tl.arange(0, 2 * D))[None, :])
        acc = tl.dot(a, b, acc)
        rest = tl.dot(a, c, rest)

    total, squares = add_up(of_slots)
    mean, deviation = moments(total, squares, C, EPS)
    dtype: tl.constexpr = x.dtype.element_ty
    d = tl.arange(0, D)
    at = first + d
    q0, k0, v0, q1, k1, v1 = _apart(acc, rest, P, D)
    q0 = _projected(q0, mean, deviation, real, bias, padding, column_sums, at, PADS_AFTER).to(dtype)
    k0 = _projected(k0, mean, deviation, real, bias, padding, column_sums, at + D, PADS_AFTER).to(dtype)
    v0 = _projected(v0, mean, deviation, real, bias, padding, column_sums, at + 2 * D, PADS_AFTER).to(dtype)
    q1 = _projected(q1, mean, deviation, real, bias, padding, column_sums, at + 3 * D, PADS_AFTER).to(dtype)
    k1 = _projected(k1, mean, deviation, real, bias, padding, column_sums, at + 4 * D, PADS_AFTER).to(dtype)
    v1 = _projected(v1, mean, deviation, real, bias, padding, column_sums, at + 5 * D, PADS_AFTER).to(dtype)
    added1 = table_of(logits, head + 1, kind, HEADS, P)
    # As `attended`, of both heads in turn at each step: what one waits for, the other fills.
    scores0 = tl.dot(q0, tl.trans(k0)) + added0.to(tl.float32)
    scores1 = tl.dot(q1, tl.trans(k1)) + added1.to(tl.float32)
    weights0, under0 = _exponentials(scores0)
    weights1, under1 = _exponentials(scores1)
    y0 = tl.dot(weights0.to(dtype), v0) * (1.0 / under0)[:, None]
    y1 = tl.dot(weights1.to(dtype), v1) * (1.0 / under1)[:, None]
    inside = (n < N)[:, None]
    write = out + (number * N + n).to(tl.int64)[:, None] * C + (head * D + d)[None, :]
    tl.store(write, y0.to(dtype), mask=inside)
    tl.store(write + D, y1.to(dtype), mask=inside)


def pair_attention(
    x: Tensor,
    weights: Weights,
    logits: Tensor,
    rows: Rows,
    sums: Tensor,
    out: Tensor,
    tile: Tile,
    *,
    window: int,
    grid: tuple[int, int],
    settled: bool = True,
) -> None:
    """Attend inside each window of rows of the token buffer; the number of heads is even.

    Args:
        x, weights, logits, rows, sums, out, grid: as of `window_attention`.
        tile: `columns` are those of two heads' queries, keys and values, 6 * D, and `depth` divides C.
        settled: whether the table of rows is older than the kernel launched before. Where maps are shifted it must be.
    """
    kinds, heads, padded, _ = logits.shape
    channels, total = x.shape[1], rows.total_windows
    depth = channels // heads
    assert heads % 2 == 0
    assert tile.columns == 6 * depth
    assert channels % tile.depth == 0
    assert settled or kinds == 1
    maps = tile.maps and has_maps(x)
    of_weight = weight_blocks(weights.weight, tile, maps)
    weight_map, rest_map = parameters("_pair_attention", 10, *of_weight)
    _pair_attention[(total * heads // 2,)](
        x,
        weights.weight,
        weights.bias,
        weights.padding,
        weights.column_sums,
        sums,
        logits,
        rows.table,
        rows.windows,
        out,
        *of_weight,
        rows.kept,
        rows.windows.shape[1],
        *grid,
        int(settled),
        HEADS=heads,
        D=depth,
        WINDOW=window,
        SHIFTED=kinds > 1,
        P=padded,
        BK=tile.depth,
        EPS=weights.eps,
        PADS_AFTER=weights.pads_after_norm,
        MAPS=maps,
        WEIGHT_MAP=weight_map,
        REST_MAP=rest_map,
        **launch_options(x),
        num_warps=tile.warps,
        num_stages=pipeline(tile, x),
        maxnreg=tile.registers if maps or not tile.maps else None,
    )


pair_attention_reference = window_attention_reference
