"""One Swin block on compact windows: attention and feed-forward run on kept windows alone.

B batch, K kept windows, N tokens in a window, C channels, T tokens of the feature map, h heads. Attribute names give
the state-dict keys of mmdet 2.x's Swin.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparsevit.model.windows import WindowTable


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = qk_scale or (channels // heads) ** -0.5
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(channels, channels * 3, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop)
        self.attend: Attend = attend

    def bias(self) -> Tensor:
        """Relative position bias, shape `(h, N, N)`."""
        # As an embedding: the gradient of an index, which sorts it, takes a dozen launches on a GPU; this takes two.
        return F.embedding(self.relative_position_index, self.relative_position_bias_table).permute(2, 0, 1)

    def forward(self, x_WNC: Tensor, mask: Tensor | None) -> Tensor:
        """Attend inside each of `(windows, N, C)`; `mask` is added to the logits, shape `(windows, N, N)`."""
        windows, tokens, channels = x_WNC.shape
        qkv = self.qkv(x_WNC).view(windows, tokens, 3, self.heads, channels // self.heads)
        drop = self.attn_drop if self.training else 0.0
        projected: Tensor = self.proj_drop(self.proj(self.attend(qkv, self.bias(), mask, self.scale, drop)))
        return projected


Attend = Callable[[Tensor, Tensor, Tensor | None, float, float], Tensor]
"""Attention proper, between the two linear layers: arguments and result are those of `attend`."""


def attend(qkv: Tensor, bias: Tensor, mask: Tensor | None, scale: float, drop: float) -> Tensor:
    """Attention of all heads inside all windows.

    Args:
        qkv: `(W, N, 3, h, D)`, D channels of a head.
        bias, mask: added to the logits, `(h, N, N)` and `(W, N, N)`.
        scale: of the logits, before that.
        drop: share of the attention weights that are dropped.

    Returns:
        `(W, N, C)`.
    """
    windows, tokens = qkv.shape[:2]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    added = bias.to(q.dtype).unsqueeze(0)
    if mask is not None:
        added = added + mask.to(q.dtype).unsqueeze(1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=drop, scale=scale)
    return out.transpose(1, 2).reshape(windows, tokens, -1)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens, shape `(N, N)`, in the order mmdet 2.x stores it."""
    steps = torch.arange(window)
    flat = (steps[:, None] * (2 * window - 1) + steps[None, :]).reshape(1, -1)
    return (flat + flat.T).flip(1).contiguous()


class ShiftedAttention(nn.Module):
    """Holds the attention under the name that state dicts expect."""

    def __init__(self, w_msa: WindowAttention) -> None:
        super().__init__()
        self.w_msa = w_msa


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(drop)),
            nn.Linear(hidden, channels),
            nn.Dropout(drop),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a whole residual branch of an image with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        alive = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype) >= self.rate
        return x * alive / (1 - self.rate)


class SwinBlock(nn.Module):
    """A plain or shifted block of a stage. Pruned windows keep their values."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        window: int,
        shift: int,
        hidden: int,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
        pad_before_norm: bool,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.pad_before_norm = pad_before_norm
        self.with_cp = with_cp
        self.norm1 = nn.LayerNorm(channels)
        attention = WindowAttention(
            channels, heads, window, qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop=attn_drop, proj_drop=drop
        )
        self.attn = ShiftedAttention(attention)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BTC: Tensor, table: WindowTable, kept: Tensor | None) -> Tensor:
        """Update the tokens of kept windows in place and return the buffer.

        Args:
            x_BTC: tokens, shape `(B, T, C)`, or `(B, T + 1, C)` with a last row of zeros where the table has padding.
            kept: kept windows of each image, shape `(B, K)`; None for all.
        """
        batch, buffer_rows, channels = x_BTC.shape
        rows = table.rows(batch, buffer_rows, kept)
        flat = x_BTC.view(-1, channels)
        windows = flat.index_select(0, rows).view(-1, table.index.shape[1], channels)
        mask, padding = self._window_masks(table, batch, kept)
        if self.with_cp and windows.requires_grad:
            windows = checkpoint(self._compute, windows, batch, mask, padding, use_reentrant=False)
        else:
            windows = self._compute(windows, batch, mask, padding)
        flat.index_copy_(0, rows, windows.reshape(-1, channels).to(flat.dtype))
        if table.padded:  # padding wrote into the spare row; the next block must read zeros there
            x_BTC[:, -1].zero_()
        return x_BTC

    def _compute(self, x_WNC: Tensor, batch: int, mask: Tensor | None, padding: Tensor | None) -> Tensor:
        normed = self.norm1(x_WNC)
        if padding is not None:
            normed = normed.masked_fill(padding.unsqueeze(-1), 0)
        shape = (batch, -1, x_WNC.shape[-1])  # one entry per image, as stochastic depth drops whole images
        x = x_WNC.reshape(shape) + self.drop_path(self.attn.w_msa(normed, mask).view(shape))
        out: Tensor = x + self.drop_path(self.ffn(self.norm2(x)))
        return out

    def _window_masks(self, table: WindowTable, batch: int, kept: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Shift mask `(B * K, N, N)`, and which positions are padding `(B * K, N)` where padding follows the norm."""
        pad_after_norm = table.padded and not self.pad_before_norm
        if table.masks is None and not pad_after_norm:
            return None, None
        every = torch.arange(table.windows, device=table.index.device)
        windows = every.repeat(batch) if kept is None else kept.reshape(-1)
        mask = None if table.masks is None else table.masks[table.mask_kind[windows]]
        return mask, table.index[windows] == table.tokens if pad_after_norm else None
