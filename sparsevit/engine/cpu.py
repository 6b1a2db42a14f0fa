"""The parts of a backbone as a CPU computes them fastest in float32: products by oneDNN, with what follows each in the
same pass, and a few windows at a time, so that what a block has in between stays in the caches.

B batch, H W height and width in tokens, T tokens of the feature map, C channels, K windows, N tokens in a window, h
heads, D channels of a head, R rows: tokens of some windows.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsevit.model.backbone import PatchMerging, SparseSwin, Stage
from sparsevit.model.block import SwinBlock
from sparsevit.model.windows import WindowTable, shift_masks

PART = 32_768
"""Values of a feature map that a block computes at a time, for each thread and at least two (0.26 MB; it makes 20 times
as many on the way). With more of them in one process, memory goes back to the system and comes again at each pass."""


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these parts compute on a device in a dtype; they need a PyTorch that was built with oneDNN."""
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return device.type == "cpu" and dtype == torch.float32 and onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@torch.no_grad()
def put_in(backbone: SparseSwin) -> None:
    """Replace the parts of a backbone in eval mode by these. They keep its weights as they are now, in part as copies.

    The backbone computes what it did, up to rounding, and can no longer be trained or moved.
    """
    for each in backbone.stages:
        stage = cast(Stage, each)
        stage.blocks = nn.ModuleList(Block(cast(SwinBlock, block), stage.window) for block in stage.blocks)
        if stage.downsample is not None:
            stage.add_module("downsample", Merging(stage.downsample))


class Block(nn.Module):
    """A `SwinBlock`; its `logits` are bias and shift mask, by kind of window, shape `(kinds, h, N, N)`."""

    def __init__(self, block: SwinBlock, window: int) -> None:
        super().__init__()
        attention = block.attn.w_msa
        self.heads, self.scale = attention.heads, attention.scale
        self.norm1, self.qkv, self.projection = block.norm1, attention.qkv, attention.proj
        layers: Any = block.ffn.layers
        self.norm2, self.first, self.second = block.norm2, layers[0][0], layers[1]
        self.pad_before_norm = block.pad_before_norm
        self.shifted = block.shift > 0
        logits = attention.bias().unsqueeze(0)
        self.logits = logits + shift_masks(window, block.shift).unsqueeze(1) if self.shifted else logits.contiguous()

    def forward(self, x_BTC: Tensor, table: WindowTable, kept: Tensor | None) -> Tensor:
        """Update the tokens of kept windows in place and return the buffer; see `SwinBlock.forward`."""
        batch, buffer_rows, channels = x_BTC.shape
        flat = x_BTC.view(-1, channels)
        rows, kinds = table.index, table.mask_kind
        if kept is not None:
            kinds = kinds[kept.reshape(-1)]
        elif batch > 1:
            kinds = kinds.repeat(batch)
        if kept is not None or batch > 1:
            rows = table.rows(batch, buffer_rows, kept).view(-1, rows.shape[1])
        pad_after_norm = table.padded and not self.pad_before_norm
        parts = -(-rows.numel() * channels // (PART * max(2, torch.get_num_threads())))
        for rows_KN, kinds_K in zip(rows.chunk(parts), kinds.chunk(parts), strict=True):
            index = rows_KN.view(-1)
            padding = index % buffer_rows == table.tokens if pad_after_norm else None
            flat.index_copy_(0, index, self._compute(flat.index_select(0, index), kinds_K, padding))
            if table.padded:  # padding wrote into the spare row; who reads next must find zeros there
                x_BTC[:, -1].zero_()
        return x_BTC

    def _compute(self, x_RC: Tensor, kinds_K: Tensor, padding: Tensor | None) -> Tensor:
        normed = self.norm1(x_RC)
        if padding is not None:
            normed.masked_fill_(padding.view(-1, 1), 0)
        x_RC = _linear_add(self._attend(_linear(normed, self.qkv), kinds_K), self.projection, x_RC)
        return _linear_add(_linear_gelu(self.norm2(x_RC), self.first), self.second, x_RC)

    def _attend(self, qkv: Tensor, kinds_K: Tensor) -> Tensor:
        """Attention inside windows: `(R, 3C)` to `(R, C)`.

        In batches of products, which threads share well; PyTorch's attention is made for longer sequences.
        """
        windows, tokens = len(kinds_K), self.logits.shape[-1]
        q, k, v = (
            qkv.view(windows, tokens, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
            .reshape(3, windows * self.heads, tokens, -1)
        )
        if self.shifted:
            logits = self.logits.index_select(0, kinds_K)
        else:
            logits = self.logits.expand(windows, -1, -1, -1).clone(memory_format=torch.contiguous_format)
        logits = logits.view(-1, tokens, tokens).baddbmm_(q, k.transpose(1, 2), alpha=self.scale)
        out = torch.bmm(logits.softmax(-1), v).view(windows, self.heads, tokens, -1)
        return out.transpose(1, 2).reshape(windows * tokens, -1)


class Merging(nn.Module):
    """A `PatchMerging` with its weights in the order of (row, column, channel), so that tokens are read whole."""

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        channels = merging.reduction.in_features // 4
        order = torch.arange(4 * channels).view(channels, 4).T.reshape(-1)
        self.weight = merging.reduction.weight[:, order]
        self.norm = copy.deepcopy(merging.norm)
        if isinstance(self.norm, nn.LayerNorm):
            for parameter in (self.norm.weight, self.norm.bias):
                parameter.copy_(parameter[order])

    def forward(self, x_BTC: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """As `PatchMerging.forward`."""
        batch, _, channels = x_BTC.shape
        x = x_BTC.view(batch, *size, channels)
        if size[0] % 2 or size[1] % 2:  # padding by nothing would still copy
            x = F.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
        size = (x.shape[1] // 2, x.shape[2] // 2)
        patches = x.view(batch, size[0], 2, size[1], 2, channels).permute(0, 1, 3, 2, 4, 5)
        normed = self.norm(patches.reshape(-1, 4 * channels))
        return _product(normed, self.weight, None).view(batch, size[0] * size[1], -1), size


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of `(R, C)`."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return _product(x, layer.weight, layer.bias)


def _linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "none")
    return result


def _linear_add(x: Tensor, layer: nn.Linear, other: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, layer.weight, layer.bias, "add")
    return result
