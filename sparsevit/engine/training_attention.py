"""Window attention with a backward pass, each one kernel: for training in bfloat16 or float16 on a GPU.

PyTorch's attention, asked for the gradient of a bias, falls back to plain products and a softmax in float32, and keeps
the probabilities of every window. Here a program holds one window and head in registers, the backward pass works the
probabilities out again, and the bias' gradient is summed over a run of windows before it leaves the chip.

W windows, N tokens in a window, h heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from sparsevit.model.block import WindowAttention, attend

_MOST_TOKENS = 64
"""Of a window: what one program holds in registers."""

_RUN = 16
"""Windows over which one program of the backward pass sums the bias' gradient."""


def train_with_kernels(backbone: nn.Module) -> None:
    """Let a backbone's attention use these kernels wherever they serve; elsewhere it stays PyTorch's."""
    for module in backbone.modules():
        if isinstance(module, WindowAttention):
            module.attend = fast_attend


def fast_attend(qkv: Tensor, bias: Tensor, mask: Tensor | None, scale: float, drop: float) -> Tensor:
    """`attend`, by the kernels if they serve: on a GPU, in half precision, for windows of up to 64 tokens."""
    width = qkv.shape[-1]
    served = qkv.is_cuda and qkv.dtype != torch.float32 and not drop and len(bias[0]) <= _MOST_TOKENS
    if served and width >= 16 and width.bit_count() == 1:
        return window_attention(qkv, bias, mask, scale)
    return attend(qkv, bias, mask, scale, drop)


def window_attention(qkv: Tensor, bias: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention inside windows; arguments and result are those of `sparsevit.model.block.attend`."""
    result: Tensor = _WindowAttention.apply(qkv, bias, mask, scale)  # type: ignore[no-untyped-call]
    return result


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        qkv, bias = qkv.contiguous(), bias.detach().float().contiguous()
        mask = None if mask is None else mask.contiguous()
        windows, tokens, _, heads, width = qkv.shape
        out = qkv.new_empty(windows, tokens, heads * width)
        ctx.save_for_backward(qkv, bias, mask)
        ctx.scale = scale
        padded = max(16, triton.next_power_of_2(tokens))
        sizes = (tokens, heads, width, padded, mask is not None)
        _forward[(windows, heads)](qkv, bias, bias if mask is None else mask, out, scale, *sizes)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        qkv, bias, mask = ctx.saved_tensors
        windows, tokens, _, heads, width = qkv.shape
        runs = triton.cdiv(windows, _RUN)
        grad_qkv = torch.empty_like(qkv)
        partial = torch.empty(runs, heads, tokens, tokens, dtype=torch.float32, device=qkv.device)
        padded = max(16, triton.next_power_of_2(tokens))
        sizes = (tokens, heads, width, padded, mask is not None, _RUN)
        gradient = gradients[0].contiguous()
        masks = bias if mask is None else mask
        _backward[(runs, heads)](qkv, bias, masks, gradient, grad_qkv, partial, ctx.scale, windows, *sizes)
        return grad_qkv, partial.sum(dim=0), None, None


@triton.jit  # type: ignore[untyped-decorator]
def _probabilities(  # type: ignore[no-untyped-def]
    q, k, bias, mask, window, head, scale, TOKENS: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr
):
    """Softmax of one window and head in float32, `(PADDED, PADDED)`; columns beyond the window are 0."""
    row = tl.arange(0, PADDED)[:, None]
    column = tl.arange(0, PADDED)[None]
    inside = (row < TOKENS) & (column < TOKENS)
    logits = tl.dot(q, tl.trans(k)).to(tl.float32) * scale
    logits += tl.load(bias + head * TOKENS * TOKENS + row * TOKENS + column, mask=inside, other=0.0)
    if MASKED:
        place = mask + window.to(tl.int64) * TOKENS * TOKENS + row * TOKENS + column
        logits += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    logits = tl.where(column < TOKENS, logits, -float("inf"))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    qkv,
    bias,
    mask,
    out,
    scale,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
):
    window, head = tl.program_id(0), tl.program_id(1)
    row = window.to(tl.int64) * TOKENS + tl.arange(0, PADDED)[:, None]
    inside = tl.arange(0, PADDED)[:, None] < TOKENS
    channel = head * WIDTH + tl.arange(0, WIDTH)[None]
    place = qkv + row * (3 * HEADS * WIDTH) + channel
    q = tl.load(place, mask=inside, other=0.0)
    k = tl.load(place + HEADS * WIDTH, mask=inside, other=0.0)
    v = tl.load(place + 2 * HEADS * WIDTH, mask=inside, other=0.0)
    weights = _probabilities(q, k, bias, mask, window, head, scale, TOKENS, PADDED, MASKED)
    mixed = tl.dot(weights.to(v.dtype), v)
    tl.store(out + row * (HEADS * WIDTH) + channel, mixed.to(v.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    qkv,
    bias,
    mask,
    gradient,
    grad_qkv,
    partial,
    scale,
    windows,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
    RUN: tl.constexpr,
):
    run, head = tl.program_id(0), tl.program_id(1)
    token = tl.arange(0, PADDED)
    channel = head * WIDTH + tl.arange(0, WIDTH)[None]
    total = tl.zeros((PADDED, PADDED), tl.float32)
    for step in range(RUN):
        window = run * RUN + step
        row = window.to(tl.int64) * TOKENS + token[:, None]
        inside = (token[:, None] < TOKENS) & (window < windows)
        place = row * (3 * HEADS * WIDTH) + channel
        q = tl.load(qkv + place, mask=inside, other=0.0)
        k = tl.load(qkv + place + HEADS * WIDTH, mask=inside, other=0.0)
        v = tl.load(qkv + place + 2 * HEADS * WIDTH, mask=inside, other=0.0)
        pull = tl.load(gradient + row * (HEADS * WIDTH) + channel, mask=inside, other=0.0)
        # The last run may go beyond the last window: it reads that one's mask again, and its gradients are 0.
        masked_window = tl.minimum(window, windows - 1)
        weights = _probabilities(q, k, bias, mask, masked_window, head, scale, TOKENS, PADDED, MASKED)
        pull_weights = tl.dot(pull, tl.trans(v)).to(tl.float32)
        pull_logits = weights * (pull_weights - tl.sum(weights * pull_weights, axis=1)[:, None])
        total += pull_logits
        narrow = pull_logits.to(q.dtype)
        tl.store(grad_qkv + place, (tl.dot(narrow, k) * scale).to(q.dtype), mask=inside)
        tl.store(grad_qkv + place + HEADS * WIDTH, (tl.dot(tl.trans(narrow), q) * scale).to(q.dtype), mask=inside)
        pull_values = tl.dot(tl.trans(weights.to(q.dtype)), pull)
        tl.store(grad_qkv + place + 2 * HEADS * WIDTH, pull_values.to(q.dtype), mask=inside)
    cell = token[:, None] * TOKENS + token[None]
    shown = (token[:, None] < TOKENS) & (token[None] < TOKENS)
    tl.store(partial + (run * HEADS + head) * TOKENS * TOKENS + cell, total, mask=shown)
