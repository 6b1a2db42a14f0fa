"""Where windows lie: index tables between tokens and windows, shift masks, and the ranking of windows.

Tokens never move. A table says which token stands where in which window, so that kept windows are gathered, computed
and written back, and pruned ones are not touched.

B batch, H W height and width in tokens, T tokens of a feature map (H*W), W windows, K kept windows, N tokens in a
window, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -100.0  # what Swin adds to attention between tokens that the cyclic shift made neighbours


@dataclass(frozen=True, eq=False)
class WindowTable:
    """One partition (plain or shifted) of an H x W map into W windows of N tokens.

    tokens: T.
    index: token of each window position, shape `(W, N)`; `T` where the position is padding.
    masks: shape `(4, N, N)`, 0 or `MASKED`; kinds are interior, right edge, bottom edge, corner. None if not shifted.
    mask_kind: which of `masks` a window uses, shape `(W,)`.
    """

    tokens: int
    index: Tensor
    masks: Tensor | None
    mask_kind: Tensor

    @property
    def windows(self) -> int:
        return self.index.shape[0]

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return self.index.numel() > self.tokens

    def rows(self, batch: int, tokens: int, kept: Tensor | None) -> Tensor:
        """Flat indices of the kept windows' tokens in a `(B * tokens, C)` buffer; shape `(B * K * N,)`.

        `tokens` counts the rows each image has in that buffer (T, or T + 1 where there is padding).
        """
        offset = torch.arange(batch, device=self.index.device).view(-1, 1, 1) * tokens
        index = self.index.unsqueeze(0) if kept is None else self.index[kept]
        return (index + offset).view(-1)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a table first asked for in inference serves training later
def window_table(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowTable:
    """The table of an H x W map, computed once per size, shift and device."""
    padded_h, padded_w = (-(-side // window) * window for side in (height, width))
    y = (torch.arange(padded_h) + shift) % padded_h
    x = (torch.arange(padded_w) + shift) % padded_w
    index = torch.where((y[:, None] < height) & (x[None, :] < width), y[:, None] * width + x[None, :], height * width)
    index = partition(index, window)
    rows, columns = padded_h // window, padded_w // window
    at_bottom = (torch.arange(rows) == rows - 1).long()[:, None]
    at_right = (torch.arange(columns) == columns - 1).long()[None, :]
    kind = (2 * at_bottom + at_right).view(-1).to(device)  # int64, as an index of ONNX's has to be
    masks = shift_masks(window, shift).to(device) if shift else None
    return WindowTable(height * width, index.to(device), masks, kind)


def partition(grid: Tensor, window: int) -> Tensor:
    """Windows of a map: `(H, W)`, both multiples of `window`, to `(windows, window * window)`, row by row."""
    height, width = grid.shape
    grid = grid.view(height // window, window, width // window, window)
    return grid.permute(0, 2, 1, 3).reshape(-1, window * window)


def shift_masks(window: int, shift: int) -> Tensor:
    """Masks by kind, shape `(4, N, N)`: tokens attend to each other only inside the same side of a cut."""
    first = torch.zeros(window, dtype=torch.long)
    cut = (torch.arange(window) >= window - shift).long()
    masks = []
    for down, right in ((first, first), (first, cut), (cut, first), (cut, cut)):
        region = (2 * down[:, None] + right[None, :]).view(-1)
        masks.append((region[:, None] != region[None, :]) * MASKED)
    return torch.stack(masks)


def token_magnitude(x_BTC: Tensor) -> Tensor:
    """Mean absolute activation of each token, shape `(B, T)`, at least in float32: squares overflow half precision."""
    return x_BTC.detach().abs().mean(dim=-1, dtype=torch.promote_types(x_BTC.dtype, torch.float32))


def rank_windows(magnitude: Tensor, table: WindowTable) -> Tensor:
    """Windows from most to least active, shape `(B, W)`.

    Args:
        magnitude: mean absolute activation of each token, shape `(B, T)`. A window's score is the L2 norm of its
            tokens' magnitudes, padding counting as 0 (SparseViT, section 3.1).
    """
    padded = F.pad(magnitude, (0, 1)) if table.padded else magnitude
    score = padded[:, table.index].square().sum(dim=-1)  # the square of the norm ranks the same
    return score.argsort(dim=-1, descending=True, stable=True)
