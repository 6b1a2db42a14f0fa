"""Attention inside windows, on queries, keys and values as the linear layer leaves them.

N tokens in a window, P tokens padded to a power of 2, h heads, D channels of a head, C channels (h * D).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.rows import Rows
from sparsevit.model.windows import MASKED

MASK = MASKED * math.log2(math.e)  # logits are in base 2


@triton.jit
def add_shift_mask(scores, number, rows, columns, WINDOW: tl.constexpr, SHIFT: tl.constexpr, P: tl.constexpr, MASK):
    """Keep tokens apart that the cyclic shift made neighbours: only in the last row and column of windows."""
    last_row = number // columns == rows - 1
    last_column = number % columns == columns - 1
    if last_row | last_column:
        at = tl.arange(0, P)
        bottom = last_row & (at // WINDOW >= WINDOW - SHIFT)
        right = last_column & (at % WINDOW >= WINDOW - SHIFT)
        region = bottom.to(tl.int32) * 2 + right.to(tl.int32)
        scores = tl.where(region[:, None] == region[None, :], scores, scores + MASK)
    return scores


@triton.jit(do_not_specialize=["total", "each", "kept", "stride", "window_rows", "window_columns"])
def _attention(
    qkv,
    bias,
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
    SHIFT: tl.constexpr,
    P: tl.constexpr,
    MASK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    N: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0)
    n = tl.arange(0, P)
    d = tl.arange(0, D)
    inside = (n < N)[:, None]
    logits = tl.load(bias + head * P * P + n[:, None] * P + n[None, :]).to(tl.float32)
    first = tl.program_id(1) * each
    end = tl.minimum(first + each, total)
    if SHIFT:
        image = first // kept
        window = tl.load(windows + image * stride + (first - image * kept), cache_modifier=".cg")
    begin(DEPENDENT)
    read = qkv + first.to(tl.int64) * (N * 3 * C) + head * D + n[:, None] * (3 * C) + d[None, :]
    write = out + first.to(tl.int64) * (N * C) + head * D + n[:, None] * C + d[None, :]
    for number in range(first, end):
        at = read + (number - first) * (N * 3 * C)
        q = tl.load(at, mask=inside, other=0.0)
        k = tl.load(at + C, mask=inside, other=0.0)
        v = tl.load(at + 2 * C, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k)) + logits
        if SHIFT:
            scores = add_shift_mask(scores, window, window_rows, window_columns, WINDOW, SHIFT, P, MASK)
            following = tl.minimum(number + 1, end - 1)  # on its way before it is needed
            image = following // kept
            window = tl.load(windows + image * stride + (following - image * kept))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        attended = tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]
        tl.store(write + (number - first) * (N * C), attended.to(out.dtype.element_ty), mask=inside)


def attention(
    qkv: Tensor,
    bias: Tensor,
    source: Rows,
    out: Tensor,
    *,
    window: int,
    shift: int,
    grid: tuple[int, int],
    programs: int,
    warps: int = 4,
    stages: int = 2,
) -> None:
    """Attend inside each window.

    Args:
        qkv: compact rows, shape `(windows * N, 3 * C)`; queries are scaled, in base 2 (times log2 e).
        bias: relative position bias in base 2, shape `(h, P, P)`; -inf in the columns of no token.
        source: which windows they are; their numbers are older than the kernel launched before.
        out: shape `(windows * N, C)`.
        grid: rows and columns of windows in a map.
        programs: about how many to start; each takes several windows in turn.
    """
    heads, padded, _ = bias.shape
    total = source.total_windows
    each = max(1, round(total * heads / programs))
    _attention[(heads, triton.cdiv(total, each))](
        qkv,
        bias,
        source.windows,
        out,
        total,
        each,
        source.kept,
        source.windows.shape[1],
        *grid,
        HEADS=heads,
        D=qkv.shape[1] // 3 // heads,
        WINDOW=window,
        SHIFT=shift,
        P=padded,
        MASK=MASK,
        **launch_options(qkv),
        num_warps=warps,
        num_stages=stages,
    )


def attention_reference(
    qkv: Tensor,
    bias: Tensor,
    source: Rows,
    out: Tensor,
    *,
    window: int,
    shift: int,
    grid: tuple[int, int],
    programs: int,
    warps: int = 4,
    stages: int = 2,
) -> None:
    """What `attention` computes, in plain PyTorch and the precision of `qkv`."""
    tokens, heads = window * window, bias.shape[0]
    q, k, v = qkv.view(-1, tokens, 3, heads, qkv.shape[1] // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) + bias[:, :tokens, :tokens].to(q.dtype)
    if shift:
        scores = scores + shift_masks(source, window, shift, grid).to(q.dtype)[:, None]
    weights = (scores * math.log(2)).softmax(-1)
    out.copy_((weights @ v).transpose(1, 2).reshape(out.shape))


def shift_masks(source: Rows, window: int, shift: int, grid: tuple[int, int]) -> Tensor:
    """What is added to the logits of each window that takes part, in base 2, shape `(windows, N, N)`."""
    number = source.windows[:, : source.kept].reshape(-1, 1)
    at = torch.arange(window * window, device=number.device)
    bottom = (number // grid[1] == grid[0] - 1) & (at // window >= window - shift)
    right = (number % grid[1] == grid[1] - 1) & (at % window >= window - shift)
    region = 2 * bottom.int() + right.int()
    return (region[:, :, None] != region[:, None, :]) * MASK
