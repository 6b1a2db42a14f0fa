"""A backbone's weights as the kernels want them: norms folded into the layers after them, bias tables expanded.

Folding happens in float32, then weights are rounded to the engine's dtype. C channels, h heads, P tokens of a window
padded to a power of 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sparsevit.engine.kernels.folded import Weights
from sparsevit.model.backbone import PatchEmbed, PatchMerging, SparseSwin, Stage
from sparsevit.model.block import SwinBlock, WindowAttention
from sparsevit.model.windows import shift_masks

LOG2_E = math.log2(math.e)


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm in float32."""

    scale: Tensor
    shift: Tensor
    eps: float


@dataclass(frozen=True, eq=False)
class EmbedWeights:
    """Patch embedding: weight `(colours * patch * patch, C)` and float32 bias `(C,)`, without their means over C, if
    there is a norm, which would take them away.
    """

    weight: Tensor
    bias: Tensor
    norm: Norm | None


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """A block. Queries are scaled by 1 / sqrt(D) and log2 e; those of a head are followed by its keys and values.

    logits: what is added to those of attention, relative position bias in base 2, shape `(1, h, P, P)`, or
        `(4, h, P, P)` where windows are shifted: inside a map, at its right, at its bottom and in the corner, each with
        its mask.
    """

    qkv: Weights
    logits: Tensor
    projection: Weights
    first: Weights
    second: Weights


@dataclass(frozen=True, eq=False)
class StageWeights:
    """The blocks of a stage, and where they are there, the norm of its output and the merging after it."""

    channels: int
    heads: int
    blocks: tuple[BlockWeights, ...]
    norm: Norm | None
    merging: Weights | None


@dataclass(frozen=True, eq=False)
class BackboneWeights:
    """Everything; `position` is the absolute position embedding before interpolation, float32, if there is one."""

    embed: EmbedWeights
    position: Tensor | None
    stages: tuple[StageWeights, ...]


@torch.no_grad()
def prepare(backbone: SparseSwin, dtype: torch.dtype) -> BackboneWeights:
    """Copies of the backbone's weights, ready for the kernels."""
    stages = []
    for number, module in enumerate(backbone.stages):
        stage = cast(Stage, module)
        blocks = tuple(_block(cast(SwinBlock, block), backbone.window_size, dtype) for block in stage.blocks)
        norm = getattr(backbone, f"norm{number}") if number in backbone.out_indices else None
        stages.append(
            StageWeights(
                channels=backbone.num_features[number],
                heads=cast(SwinBlock, stage.blocks[0]).attn.w_msa.heads,
                blocks=blocks,
                norm=_norm(norm),
                merging=None if stage.downsample is None else _merging(stage.downsample, dtype),
            )
        )
    position = backbone.absolute_pos_embed
    return BackboneWeights(
        embed=_embed(backbone.patch_embed, dtype),
        position=None if position is None else position.detach().float().clone(),
        stages=tuple(stages),
    )


def fold(
    linear: nn.Linear,
    norm: nn.LayerNorm | None,
    dtype: torch.dtype,
    *,
    scale: Tensor | None = None,
    order: Tensor | None = None,
    after: bool = False,
) -> Weights:
    """A linear layer and the norm before it as one.

    Args:
        scale: factor of each output channel.
        order: of the output channels, if not as they are: which one comes first, and so on.
        after: whether padding comes after the norm, as zeros.
    """
    weight = linear.weight.detach().float().T
    bias = weight.new_zeros(weight.shape[1]) if linear.bias is None else linear.bias.detach().float()
    if order is not None:
        weight, bias = weight[:, order], bias[order]
    padding = bias
    if norm is not None:
        bias = bias + norm.bias.detach().float() @ weight
        weight = weight * norm.weight.detach().float()[:, None]
    if scale is not None:
        weight, bias, padding = weight * scale, bias * scale, padding * scale
    rounded = weight.to(dtype, copy=True).contiguous()
    bias = bias.clone()
    return Weights(
        weight=rounded,
        bias=bias,
        padding=padding.clone() if after and norm is not None else bias,
        column_sums=rounded.float().sum(0),
        eps=None if norm is None else norm.eps,
    )


def padded_logits(bias: Tensor, masks: Tensor | None = None) -> Tensor:
    """Relative position bias `(h, N, N)` in base 2, padded to `(1, h, P, P)`: -inf in columns of no token, 0 in rows.

    With the masks of a shifted map's kinds of windows, shape `(4, N, N)`, each of these added: `(4, h, P, P)`.

    In float16, whose relative error of 5e-4 is also below what bfloat16 makes of the logits; it halves the bytes.
    """
    heads, tokens, _ = bias.shape
    size = max(16, 1 << (tokens - 1).bit_length())
    masked = bias.detach().float()[None] + (0 if masks is None else masks[:, None].to(bias.device))
    logits = bias.new_zeros(len(masked), heads, size, size, dtype=torch.float32)
    logits[..., tokens:] = -math.inf
    logits[..., :tokens, :tokens] = masked * LOG2_E
    return logits.to(torch.float16)


def _block(block: SwinBlock, window: int, dtype: torch.dtype) -> BlockWeights:
    attention = block.attn.w_msa
    first, second = block.ffn.layers[0], block.ffn.layers[1]
    return BlockWeights(
        qkv=_qkv(attention, block.norm1, dtype, after=not block.pad_before_norm),
        logits=padded_logits(attention.bias(), shift_masks(window, block.shift) if block.shift else None),
        projection=fold(attention.proj, None, dtype),
        first=fold(cast(nn.Linear, cast(nn.Sequential, first)[0]), block.norm2, dtype),
        second=fold(cast(nn.Linear, second), None, dtype),
    )


def _qkv(attention: WindowAttention, norm: nn.LayerNorm, dtype: torch.dtype, *, after: bool) -> Weights:
    """Of each head its queries, keys and values, in place of the queries of all heads, their keys and their values."""
    columns, heads = 3 * attention.qkv.in_features, attention.heads
    order = torch.arange(columns).view(3, heads, -1).transpose(0, 1).reshape(-1)
    scale = torch.ones(columns)
    scale[: columns // 3] = attention.scale * LOG2_E
    device = attention.qkv.weight.device
    return fold(attention.qkv, norm, dtype, scale=scale[order].to(device), order=order.to(device), after=after)


def _norm(norm: nn.LayerNorm | None) -> Norm | None:
    if norm is None:
        return None
    return Norm(norm.weight.detach().float().clone(), norm.bias.detach().float().clone(), norm.eps)


def _embed(embed: PatchEmbed, dtype: torch.dtype) -> EmbedWeights:
    assert embed.projection.bias is not None
    weight, bias = embed.projection.weight.detach().float().flatten(1).T, embed.projection.bias.detach().float()
    norm = embed.norm if isinstance(embed.norm, nn.LayerNorm) else None
    if norm is not None:
        weight, bias = weight - weight.mean(1, keepdim=True), bias - bias.mean()
    return EmbedWeights(weight.to(dtype, copy=True).contiguous(), bias.clone(), _norm(norm))


def _merging(merging: PatchMerging, dtype: torch.dtype) -> Weights:
    """With the inputs in the order (row, column, channel) of the 2 x 2 patch, so that each token is read whole."""
    channels = merging.reduction.in_features // 4
    order = torch.arange(4 * channels).view(channels, 4).T.reshape(-1).to(merging.reduction.weight.device)
    linear = nn.Linear(4 * channels, merging.reduction.out_features, bias=False, device=merging.reduction.weight.device)
    linear.weight.copy_(merging.reduction.weight[:, order])
    norm = None
    if isinstance(merging.norm, nn.LayerNorm):
        norm = nn.LayerNorm(4 * channels, eps=merging.norm.eps, device=linear.weight.device)
        norm.weight.copy_(merging.norm.weight[order])
        norm.bias.copy_(merging.norm.bias[order])
    return fold(linear, norm, dtype)
