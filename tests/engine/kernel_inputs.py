"""What tests of kernels run them on: weights, rows of a map, poisoned outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsevit.engine.kernels.folded import Weights
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import sums_of
from sparsevit.engine.tuning import Tile
from sparsevit.engine.weights import fold, padded_logits
from sparsevit.model.windows import shift_masks

Check = Callable[..., Tensor]
MakeRows = Callable[..., Rows]
SMALL = Tile(32, 64, 16, 4, 2)
# Maps in tokens, window, shift, kept windows of each image: whole, padded, one window, heads and tails of rankings.
MAPS = [((14, 14), 7, 0, 4), ((9, 12), 7, 3, 3), ((7, 5), 7, 3, 1), ((8, 13), 4, 2, 5)]


def layer(
    inputs: int, outputs: int, device: torch.device, dtype: torch.dtype, *, normed: bool, after: bool = False
) -> Weights:
    weights, before = nn.Linear(inputs, outputs), nn.LayerNorm(inputs)
    with torch.no_grad():
        before.weight.add_(torch.randn(inputs) * 0.3)
        before.bias.add_(torch.randn(inputs) * 0.3)
        weights.weight.normal_(std=inputs**-0.5)
    return fold(weights.to(device), before.to(device) if normed else None, dtype, after=after)


def logits(heads: int, window: int, shift: int, device: torch.device) -> Tensor:
    bias = torch.randn(heads, window**2, window**2, device=device)
    return padded_logits(bias, shift_masks(window, shift) if shift else None)


def poison(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, device=device, dtype=dtype)


def fit(sums: Tensor, x: Tensor) -> None:
    """Slots add up to the sums of rows, up to the rounding of the rows."""
    torch.testing.assert_close(sums.sum(1), sums_of(x.float()).sum(1), rtol=1e-2, atol=0.5)


def tokens(batch: int, size: tuple[int, int], channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows whose mean is not 0, as a norm must find it."""
    return (torch.randn(batch * size[0] * size[1], channels, device=device) * 2 + 0.7).to(dtype)
