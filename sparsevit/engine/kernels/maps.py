"""Tensor maps: one instruction brings a whole block of a matrix into shared memory or writes it (Hopper's TMA)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sparsevit.engine.kernels.device import is_hopper
from sparsevit.engine.tuning import Tile


@triton.jit
def prefetch_map(PARAMETER: tl.constexpr, DEPENDENT: tl.constexpr):
    """Have a map itself brought near, which else the first load by it waits for; nothing where PARAMETER is None.

    Triton has no word for it, so the map is named as compiled code names it, see `parameters`.
    """
    if DEPENDENT and PARAMETER is not None:
        tl.inline_asm_elementwise(
            """{
            .reg .u32 thread;
            .reg .pred one;
            mov.u32 thread, %tid.x;
            setp.eq.u32 one, thread, 0;
            @one prefetch.param.tensormap ["""
            + PARAMETER
            + """];
            mov.u32 $0, 0;
            }""",
            "=r",
            [],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


def parameters(kernel: str, before: int, *arguments: Any) -> tuple[str | None, ...]:
    """Names in compiled code of a kernel's arguments that may be maps; None of those that are none.

    Args:
        before: arguments before them. A map of two dimensions becomes five: itself, two sizes and two strides.
    """
    names = []
    for argument in arguments:
        is_map = isinstance(argument, TensorDescriptor)
        names.append(f"{kernel}_param_{before}" if is_map else None)
        before += 5 if is_map else 1
    return tuple(names)


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


def out_blocks(out: Tensor, tile: Tile) -> tuple[Any, Any]:
    """Rows to be written, which lie together, as the blocks that a tile has; nothing is written beyond the last."""
    rest = tile.columns - tile.power
    return blocks(out, tile.rows, tile.power), blocks(out, tile.rows, rest) if rest else out
