"""Attention inside windows, on queries, keys and values as the linear layer leaves them.

N tokens in a window, P tokens padded to a power of 2, h heads, D channels of a head, C channels (h * D).
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.device import is_hopper
from sparsevit.engine.kernels.rows import Rows

REGISTERS = 80
"""Of a thread at most, on Hopper, for heads of up to 32 channels: a multiprocessor holds six programs, not five."""


@triton.jit
def table_of(logits, head, kind, HEADS: tl.constexpr, P: tl.constexpr):
    """What is added to the logits of a head in a kind of window."""
    p = tl.arange(0, P)
    return tl.load(logits + (kind * HEADS + head) * P * P + p[:, None] * P + p[None, :])


@triton.jit
def kind_of(window, rows, columns):
    """Kind of a window of a shifted map: 1 at its right, 2 at its bottom, 3 in the corner, else 0."""
    return (window // columns == rows - 1).to(tl.int32) * 2 + (window % columns == columns - 1).to(tl.int32)


@triton.jit
def attended(q, k, v, added):
    """Attention of a window's head, before it is rounded; `added` is in base 2."""
    scores = tl.dot(q, tl.trans(k)) + added.to(tl.float32)
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]


@triton.jit(do_not_specialize=["total", "each", "kept", "stride", "window_rows", "window_columns"])
def _attention(
    qkv,
    logits,
    windows,
    out,
    total,
    each,
    kept,
    stride,
    window_rows,
    window_columns,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    P: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    N: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0)
    n = tl.arange(0, P)
    d = tl.arange(0, D)
    inside = (n < N)[:, None]
    first = tl.program_id(1) * each
    end = tl.minimum(first + each, total)
    kind = 0
    if SHIFTED:
        image = first // kept
        window = tl.load(windows + image * stride + (first - image * kept), cache_modifier=".cg")
        kind = kind_of(window, window_rows, window_columns)
    added = table_of(logits, head, kind, HEADS, P)
    begin(DEPENDENT)
    read = qkv + first.to(tl.int64) * (N * 3 * C) + head * (3 * D) + n[:, None] * (3 * C) + d[None, :]
    write = out + first.to(tl.int64) * (N * C) + head * D + n[:, None] * C + d[None, :]
    for number in range(first, end):
        if SHIFTED:
            following = tl.minimum(number + 1, end - 1)
            image = following // kept
            window = tl.load(windows + image * stride + (following - image * kept))
        at = read + (number - first) * (N * 3 * C)
        q = tl.load(at, mask=inside, other=0.0)
        k = tl.load(at + D, mask=inside, other=0.0)
        v = tl.load(at + 2 * D, mask=inside, other=0.0)
        y = attended(q, k, v, added)
        tl.store(write + (number - first) * (N * C), y.to(out.dtype.element_ty), mask=inside)
        if SHIFTED:
            following_kind = kind_of(window, window_rows, window_columns)
            if following_kind != kind:  # of most it is 0, and a table is as large as what a window reads
                added = table_of(logits, head, following_kind, HEADS, P)
            kind = following_kind


def attention(
    qkv: Tensor,
    logits: Tensor,
    source: Rows,
    out: Tensor,
    *,
    window: int,
    grid: tuple[int, int],
    programs: int,
    warps: int = 4,
    stages: int = 2,
) -> None:
    """Attend inside each window.

    Args:
        qkv: compact rows, shape `(windows * N, 3 * C)`, queries, keys and values of a head side by side; queries are
            scaled, in base 2 (times log2 e).
        logits: what is added, in base 2, shape `(1, h, P, P)`, or by `kind_of` a window `(4, h, P, P)` where the map is
            shifted; -inf in the columns of no token.
        source: which windows they are; their numbers are older than the kernel launched before.
        out: shape `(windows * N, C)`.
        grid: rows and columns of windows in a map.
        programs: about how many to start; each takes several windows in turn.
    """
    kinds, heads, padded, _ = logits.shape
    total = source.total_windows
    each = max(1, round(total * heads / programs))
    depth = qkv.shape[1] // 3 // heads
    _attention[(heads, triton.cdiv(total, each))](
        qkv,
        logits,
        source.windows,
        out,
        total,
        each,
        source.kept,
        source.windows.shape[1],
        *grid,
        HEADS=heads,
        D=depth,
        WINDOW=window,
        SHIFTED=kinds > 1,
        P=padded,
        **launch_options(qkv),
        num_warps=warps,
        num_stages=stages,
        maxnreg=REGISTERS if depth <= 32 and is_hopper(qkv.device) else None,
    )


def attention_reference(
    qkv: Tensor,
    logits: Tensor,
    source: Rows,
    out: Tensor,
    *,
    window: int,
    grid: tuple[int, int],
    programs: int,
    warps: int = 4,
    stages: int = 2,
) -> None:
    """What `attention` computes, in plain PyTorch and the precision of `qkv`."""
    tokens, heads = window * window, logits.shape[1]
    q, k, v = qkv.view(-1, tokens, heads, 3, qkv.shape[1] // 3 // heads).permute(3, 0, 2, 1, 4)
    number = source.windows[:, : source.kept].reshape(-1)
    kind = (number // grid[1] == grid[0] - 1).long() * 2 + (number % grid[1] == grid[1] - 1)
    scores = q @ k.transpose(-1, -2)
    scores = scores + logits[kind if len(logits) > 1 else 0, :, :tokens, :tokens].to(q.dtype)
    weights = (scores * math.log(2)).softmax(-1)
    out.copy_((weights @ v).transpose(1, 2).reshape(out.shape))
