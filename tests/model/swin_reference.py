"""SparseViT as published, done the slow and literal way.

In every block the map is padded, rolled, cut, gathered, normalised, attended, scattered and put together again. Reads
the weights of a `SparseSwin` and shares no other code with it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def cut(x_BHWC: Tensor, window: int) -> Tensor:
    """`(B, H, W, C)` to `(B, windows, N, C)`."""
    rows = torch.split(x_BHWC, window, dim=1)
    return torch.stack([w.flatten(1, 2) for row in rows for w in torch.split(row, window, dim=2)], dim=1)


def join(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """What `cut` cut, `(B, H, W, C)`."""
    per_row = width // window
    squares = [w.reshape(len(w), window, window, -1) for w in windows.unbind(1)]
    rows = [torch.cat(squares[i : i + per_row], dim=2) for i in range(0, len(squares), per_row)]
    return torch.cat(rows, dim=1)


def pad(x_BHWC: Tensor, window: int) -> Tensor:
    height, width = x_BHWC.shape[1:3]
    return F.pad(x_BHWC, (0, 0, 0, -width % window, 0, -height % window))


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Swin's own construction: number the regions that the roll tears apart; `(windows, N, N)`, 0 or -100."""
    region = torch.zeros(1, height, width, 1)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    number = 0
    for down in slices:
        for right in slices:
            region[:, down, right] = number
            number += 1
    numbers = cut(region, window)[0, :, :, 0]
    return (numbers[:, None, :] != numbers[:, :, None]).float() * -100.0


def relative_bias(table: Tensor, window: int) -> Tensor:
    """`(heads, N, N)` by looping over pairs of tokens."""
    places = [(y, x) for y in range(window) for x in range(window)]
    span = 2 * window - 1
    rows = [[(yq - yk + window - 1) * span + xq - xk + window - 1 for yk, xk in places] for yq, xq in places]
    return table[torch.tensor(rows)].permute(2, 0, 1)


def attention(module: Any, x: Tensor, mask: Tensor | None, window: int) -> Tensor:
    """Windows `(n, N, C)`, masks `(n, N, N)`."""
    heads = module.heads
    head = x.shape[-1] // heads
    q, k, v = (t.unflatten(-1, (heads, head)).transpose(1, 2) for t in module.qkv(x).chunk(3, dim=-1))
    logits = (q / math.sqrt(head)) @ k.transpose(-1, -2) + relative_bias(module.relative_position_bias_table, window)
    if mask is not None:
        logits = logits + mask[:, None].to(logits.dtype)
    return module.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def order_of_windows(x_BHWC: Tensor, window: int, shift: int) -> Tensor:
    """Windows from most to least active, `(B, windows)`: L2 norm over the window of tokens' mean magnitudes."""
    magnitude = pad(x_BHWC.detach().abs().mean(-1, keepdim=True), window).roll((-shift, -shift), (1, 2))
    scores = cut(magnitude, window).squeeze(-1).pow(2).sum(-1).sqrt()
    return scores.sort(dim=1, descending=True, stable=True).indices


def run_block(block: Any, x_BHWC: Tensor, window: int, shift: int, order: Tensor | None, ratio: Fraction) -> Tensor:
    height, width = x_BHWC.shape[1:3]
    padded = pad(x_BHWC, window).roll((-shift, -shift), (1, 2))
    full_height, full_width = padded.shape[1:3]
    windows = cut(padded, window)
    # In Swin's order the norm comes first and zeros are padded to its output.
    real = cut(pad(torch.ones_like(x_BHWC[..., :1]), window).roll((-shift, -shift), (1, 2)), window)
    masks = shift_mask(full_height, full_width, window, shift) if shift else None
    outs = []
    for i, image in enumerate(windows):
        kept = torch.arange(len(image))
        if order is not None:
            kept = order[i][: max(1, math.floor(len(image) * (1 - ratio)))]
        active = image[kept]
        normed = block.norm1(active)
        if not block.pad_before_norm:
            normed = normed * real[i][kept]
        attended = attention(block.attn.w_msa, normed, None if masks is None else masks[kept], window)
        active = active + attended
        active = active + block.ffn.layers(block.norm2(active))
        outs.append(image.index_put((kept,), active))
    whole = join(torch.stack(outs), window, full_height, full_width).roll((shift, shift), (1, 2))
    return whole[:, :height, :width]


def merge(downsample: Any, x_BHWC: Tensor) -> Tensor:
    """Patch merging by `unfold`, as mmdet 2.x's weights have it."""
    x = F.pad(x_BHWC, (0, 0, 0, x_BHWC.shape[2] % 2, 0, x_BHWC.shape[1] % 2)).permute(0, 3, 1, 2)
    height, width = x.shape[2] // 2, x.shape[3] // 2
    merged = downsample.reduction(downsample.norm(F.unfold(x, 2, stride=2).transpose(1, 2)))
    return merged.unflatten(1, (height, width))  # type: ignore[no-any-return]


def forward(model: Any, image: Tensor, window: int) -> list[Tensor]:
    """All stages' maps `(B, C, H, W)` of a `SparseSwin` in evaluation mode under its active sparsity."""
    patch = model.patch_embed.patch
    x = model.patch_embed.projection(F.pad(image, (0, -image.shape[3] % patch, 0, -image.shape[2] % patch)))
    x = model.patch_embed.norm(x.permute(0, 2, 3, 1))
    if model.absolute_pos_embed is not None:
        position = F.interpolate(model.absolute_pos_embed, size=x.shape[1:3], mode="bicubic", align_corners=False)
        x = x + position.permute(0, 2, 3, 1)
    outs = []
    for i, (stage, ratios) in enumerate(zip(model.stages, model.sparsity.stages, strict=True)):
        orders: list[Tensor] | None = None
        for number, block in enumerate(stage.blocks):
            ratio = Fraction(ratios[number // 2])
            if ratio > 0 and orders is None:
                orders = [order_of_windows(x, window, shift) for shift in (0, window // 2)]
            shift = window // 2 if number % 2 else 0
            x = run_block(block, x, window, shift, None if orders is None else orders[number % 2], ratio)
        if i in model.out_indices:
            outs.append(getattr(model, f"norm{i}")(x).permute(0, 3, 1, 2))
        if stage.downsample is not None:
            x = merge(stage.downsample, x)
    return outs
