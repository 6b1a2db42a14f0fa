"""Tables that depend on a size, the window's or the image's, and their interpolation to another one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BIAS_TABLE = "relative_position_bias_table"
POSITION = "absolute_pos_embed"


def window_of_table(table: Tensor) -> int | None:
    """The side of the window whose bias table this is, `((2 * window - 1)², heads)`; None if it is no such table."""
    side = math.isqrt(table.shape[0])
    return (side + 1) // 2 if table.ndim == 2 and side**2 == table.shape[0] and side % 2 else None


def window_of(weights: Mapping[str, Tensor]) -> int | None:
    """The window of the first bias table among some weights; None without one."""
    return next((window_of_table(value) for key, value in weights.items() if key.endswith(BIAS_TABLE)), None)


def resize_tables(weights: Mapping[str, Tensor], window: int) -> dict[str, Tensor]:
    """The weights with all bias tables interpolated to another window."""
    rows = (2 * window - 1) ** 2
    return {
        key: resized(key, value, (rows, *value.shape[1:])) if key.endswith(BIAS_TABLE) else value
        for key, value in weights.items()
    }


def resized(key: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """A bias table or an absolute position embedding in another size; any other tensor, or any other shape, as it is.

    Bicubic, each head or channel for itself, without aligned corners, as Swin's and mmdet's own loading does it.
    """
    shape = tuple(shape)
    if value.shape == shape:
        return value
    if key.endswith(BIAS_TABLE) and value.ndim == len(shape) == 2 and value.shape[1] == shape[1]:
        before, after = (math.isqrt(rows) for rows in (value.shape[0], shape[0]))
        if before**2 == value.shape[0] and after**2 == shape[0]:
            grid = value.T.reshape(1, -1, before, before)
            return _bicubic(grid, (after, after)).flatten(2)[0].T.contiguous()
    if key.endswith(POSITION) and value.ndim == len(shape) == 4 and value.shape[:2] == shape[:2]:
        return _bicubic(value, shape[2:])
    return value


def _bicubic(grid: Tensor, size: Sequence[int]) -> Tensor:
    wide = grid.to(torch.promote_types(grid.dtype, torch.float32))
    return F.interpolate(wide, size=tuple(size), mode="bicubic", align_corners=False).to(grid.dtype)
