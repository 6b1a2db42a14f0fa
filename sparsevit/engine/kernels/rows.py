"""Which rows of a token buffer a kernel works on: the tokens of each image's kept windows, as a table and a count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """The first `kept` windows of every image in some order of the windows.

    table: row of the `(B * T, C)` token buffer of each window position, window by window, shape `(B, W * N)`, int32;
        -1 where the position is padding.
    windows: number of each window in its map, in the same order, shape `(B, W)`, int32.
    kept: windows of each image that take part.
    """

    table: Tensor
    windows: Tensor
    kept: int

    @property
    def tokens(self) -> int:
        """Window positions of a window, N."""
        return self.table.shape[1] // self.windows.shape[1]

    @property
    def per_image(self) -> int:
        """Window positions of each image that take part."""
        return self.kept * self.tokens

    @property
    def total(self) -> int:
        """Window positions that take part, which is the number of compact rows."""
        return self.table.shape[0] * self.per_image

    @property
    def total_windows(self) -> int:
        """Windows that take part, over all images."""
        return self.table.shape[0] * self.kept

    def flat(self) -> Tensor:
        """The rows that take part, compact, shape `(total,)`, int64."""
        return self.table[:, : self.per_image].reshape(-1).long()

    def gather(self, x_RC: Tensor) -> Tensor:
        """Compact rows of a token buffer, shape `(total, C)`; zeros where the position is padding."""
        rows = self.flat()
        return torch.where((rows >= 0)[:, None], x_RC[rows.clamp(min=0)], x_RC.new_zeros(()))

    def scatter(self, x_RC: Tensor, values: Tensor) -> None:
        """Write compact rows into a token buffer; those of padding go nowhere."""
        rows = self.flat()
        x_RC[rows[rows >= 0]] = values[rows >= 0].to(x_RC.dtype)
