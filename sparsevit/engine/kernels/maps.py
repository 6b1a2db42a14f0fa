"""Tensor maps, by which one instruction has a whole block of a matrix brought into shared memory (Hopper's TMA)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sparsevit.engine.kernels.device import is_hopper
from sparsevit.engine.tuning import Tile


def has_maps(x: Tensor) -> bool:
    """Whether the device of `x` has them."""
    return is_hopper(x.device)


def blocks(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A matrix, whose rows are multiples of 16 bytes, as blocks of `rows` x `columns`; 0 beyond its edges."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def weight_blocks(weight: Tensor, tile: Tile, maps: bool) -> tuple[Any, Any]:
    """Weights as the blocks that a tile has, the greater and the smaller; as they are without `maps`."""
    if not maps:
        return weight, weight
    rest = tile.columns - tile.power
    return blocks(weight, tile.depth, tile.power), blocks(weight, tile.depth, rest) if rest else weight
