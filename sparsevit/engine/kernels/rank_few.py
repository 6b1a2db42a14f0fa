"""`score` and `rank` of few windows in one launch, where each program scores all windows of an image by itself.

B images, T tokens of a map, W windows, N tokens in a window, S slots, as in `rank.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.rank import rank_reference, score_reference

FEW = 256
"""Up to this many windows of an image are ranked in one launch."""


@triton.jit
def _score_all(
    magnitudes,
    image,
    images,
    height,
    width,
    grid_rows,
    grid_columns,
    shift,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    GR: tl.constexpr,
    GC: tl.constexpr,
    P: tl.constexpr,
):
    """Scores of an image's windows, shape `(GC, GR)`: a line of each at a time, so that neighbours read together."""
    column = tl.arange(0, GC)[:, None, None]
    row = tl.arange(0, GR)[None, :, None]
    p = tl.arange(0, P)[None, None, :]
    x = column * WINDOW + p + shift
    x = tl.where(x >= grid_columns * WINDOW, x - grid_columns * WINDOW, x)
    # So that the compiler lays threads along lines. It is not true where a shifted map goes round, which does no harm:
    # as it knows nothing of the width, each thread reads single values.
    x = tl.max_contiguous(x, (1, 1, P))
    in_line = (p < WINDOW) & (column < grid_columns) & (x < width)
    squares = tl.zeros((GC, GR, P), tl.float32)
    for line in tl.static_range(WINDOW):
        y = row * WINDOW + line + shift
        y = tl.where(y >= grid_rows * WINDOW, y - grid_rows * WINDOW, y)
        mask = in_line & (row < grid_rows) & (y < height)
        at = magnitudes + (image * height + y) * width + x
        values = tl.load(at, mask=mask, other=0.0)
        for slot in tl.static_range(1, S):
            values += tl.load(at + slot * images * height * width, mask=mask, other=0.0)
        squares += values * values
    return tl.sum(squares, 2)


@triton.jit(do_not_specialize=["height", "width", "grid_rows", "grid_columns"])
def _score_and_rank(
    magnitudes,
    places,
    scores,
    ranked,
    table,
    height,
    width,
    grid_rows,
    grid_columns,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    GR: tl.constexpr,
    GC: tl.constexpr,
    P: tl.constexpr,
    PP: tl.constexpr,
    BW: tl.constexpr,
    BO: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    N: tl.constexpr = WINDOW * WINDOW
    image = tl.program_id(1)
    images = tl.num_programs(1)
    partition = tl.program_id(2)
    windows = grid_rows * grid_columns
    here = (partition * images + image) * windows
    w = tl.arange(0, BW)
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    n = tl.arange(0, PP)
    own_mask = (o < windows)[:, None] & (n < N)[None, :]
    own_place = tl.load(places + (partition * windows + o)[:, None] * N + n[None, :], mask=own_mask, other=-1)
    begin(DEPENDENT)
    found = _score_all(
        magnitudes, image, images, height, width, grid_rows, grid_columns, partition * (WINDOW // 2),
        S, WINDOW, GR, GC, P,
    )  # fmt: skip
    # By way of memory: the compiler may sum anew for rows and for columns of what is compared, in another order, and
    # ranks of scores that differ in their last bit are no permutation. All programs of an image write the same.
    row = tl.arange(0, GR)[None, :]
    column = tl.arange(0, GC)[:, None]
    tl.store(scores + here + row * grid_columns + column, found, mask=(row < grid_rows) & (column < grid_columns))
    tl.debug_barrier()
    theirs = tl.load(scores + here + w, mask=w < windows, other=0.0).to(tl.int32, bitcast=True)  # as in `rank`
    own = tl.load(scores + here + o, mask=o < windows, other=0.0).to(tl.int32, bitcast=True)
    beats = theirs[None, :] > own[:, None]
    beats |= (theirs[None, :] == own[:, None]) & (w[None, :] < o[:, None])
    better = tl.sum((beats & (w < windows)[None, :]).to(tl.int32), 1)
    tl.store(ranked + here + better, o, mask=o < windows)
    row_of = tl.where(own_place >= 0, image * height * width + own_place, -1)
    tl.store(table + (here + better)[:, None] * N + n[None, :], row_of, mask=own_mask)


def score_and_rank(
    magnitudes: Tensor,
    places: Tensor,
    size: tuple[int, int],
    scores: Tensor,
    ranked: Tensor,
    table: Tensor,
    *,
    window: int,
) -> None:
    """`score` and `rank` as one launch, for at most `FEW` windows of an image: each program scores all of them.

    Args:
        size: height and width of a map in tokens.
    """
    partitions, windows, per_window = places.shape
    rows, columns = (triton.cdiv(side, window) for side in size)
    assert rows * columns == windows
    assert window**2 == per_window
    _score_and_rank[(triton.cdiv(windows, 16), ranked.shape[1], partitions)](
        magnitudes,
        places,
        scores,
        ranked,
        table,
        *size,
        rows,
        columns,
        S=len(magnitudes),
        WINDOW=window,
        GR=triton.next_power_of_2(rows),
        GC=triton.next_power_of_2(columns),
        P=triton.next_power_of_2(window),
        PP=triton.next_power_of_2(per_window),
        BW=max(16, triton.next_power_of_2(windows)),
        BO=16,
        **launch_options(magnitudes),
        num_warps=16,
        maxnreg=64,
    )


def score_and_rank_reference(
    magnitudes: Tensor,
    places: Tensor,
    size: tuple[int, int],
    scores: Tensor,
    ranked: Tensor,
    table: Tensor,
    *,
    window: int,
) -> None:
    """What `score_and_rank` computes, in plain PyTorch."""
    score_reference(magnitudes, places, scores)
    rank_reference(scores, places, size[0] * size[1], ranked, table)
