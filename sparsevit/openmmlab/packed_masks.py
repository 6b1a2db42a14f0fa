"""Instance masks as bits: each cut to the rows and byte columns it covers, small enough to store and to send.

N masks, H and W height and width in pixels, P bytes of all masks. Bits of a byte go from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOP, ROWS, LEFT, WIDTH, START = range(5)  # columns of a table; LEFT and WIDTH count bytes, START is the first byte


@dataclass(frozen=True)
class PackedMasks:
    """Masks of one image.

    bits: uint8, shape `(P,)`.
    table: where each mask lies, int32, shape `(N, 5)`; see `TOP` and its neighbours. An empty mask has no rows.
    height, width: of the image, in pixels.
    """

    bits: NDArray[np.uint8]
    table: NDArray[np.int32]
    height: int
    width: int

    @classmethod
    def of(cls, masks: NDArray[np.uint8]) -> PackedMasks:
        """Masks of shape `(N, H, W)`, packed; whatever is not 0 is in the mask."""
        table = np.zeros((len(masks), 5), np.int32)
        parts: list[NDArray[np.uint8]] = []
        start = 0
        for row, mask in zip(table, masks, strict=True):
            covered = np.flatnonzero(mask.any(axis=1))
            row[START] = start
            if not len(covered):
                continue
            top, bottom = covered[0], covered[-1] + 1
            columns = np.flatnonzero(mask[top:bottom].any(axis=0))
            left, right = columns[0] // 8, columns[-1] // 8 + 1
            parts.append(np.packbits(mask[top:bottom, left * 8 : right * 8] != 0, axis=1).ravel())
            row[:START] = top, bottom - top, left, right - left
            start += len(parts[-1])
        bits = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
        return cls(bits, table, *masks.shape[1:])

    def unpack(self) -> NDArray[np.uint8]:
        """0 and 1, shape `(N, H, W)`."""
        masks = np.zeros((len(self.table), self.height, -(-self.width // 8) * 8), np.uint8)
        for mask, (top, rows, left, width, start) in zip(masks, self.table, strict=True):
            bits = self.bits[start : start + rows * width].reshape(rows, width)
            mask[top : top + rows, left * 8 : (left + width) * 8] = np.unpackbits(bits, axis=1)
        return masks[:, :, : self.width]


def unpack_batch(bits: Tensor, table: Tensor, frames: Tensor, size: tuple[int, int], *, mirrored: bool) -> Tensor:
    """Masks of many images on the tensors' device, flipped as their images are.

    Args:
        bits: uint8 `(P,)`.
        table: int `(N, 5)`, as in `PackedMasks`, `START` counted in `bits`.
        frames: int `(N, 4)`: height and width of each mask's image, whether it is flipped from left to right and from
            top to bottom.
        size: height and width of the result; an image lies in its top left corner.
        mirrored: whether any image is flipped from left to right.

    Returns:
        bool, shape `(N, *size)`.
    """
    height, width = size
    if not len(table) or not len(bits):
        return torch.zeros(len(table), height, width, dtype=torch.bool, device=bits.device)
    table, frames = table[:, :, None, None], frames[:, :, None, None]
    y = torch.arange(height, device=bits.device, dtype=torch.int32)[:, None]
    row = torch.where(frames[:, 3] != 0, frames[:, 0] - 1 - y, y) - table[:, TOP]
    column = torch.arange(-(-width // 8), device=bits.device, dtype=torch.int32) - table[:, LEFT]
    covered = ((row >= 0) & (row < table[:, ROWS])) & ((column >= 0) & (column < table[:, WIDTH]))
    place = (table[:, START] + row * table[:, WIDTH] + column).clamp_(0, len(bits) - 1)
    found = bits[place].masked_fill_(~covered, 0)
    weights = torch.pow(2, torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8))
    masks = (found[..., None] & weights).ne(0).flatten(2)[:, :, :width]
    if mirrored:
        x = torch.arange(width, device=bits.device)
        source = torch.where(frames[:, 2, 0] != 0, frames[:, 1, 0] - 1 - x, x)
        inside = (source >= 0)[:, None]
        masks = masks.gather(2, source.clamp_(min=0)[:, None].expand_as(masks)) & inside
    return masks
