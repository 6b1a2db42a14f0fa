"""mmcv-full's compiled operators on bfloat16 and half tensors: run in float32, results in the tensor's own dtype.

They have no bfloat16 kernels, and take half features with half boxes alone, whose coordinates are off by whole pixels.
Autocast yields both. On float32 the compiled operators are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

# Module of mmcv.ops: its operators, with the places of the arguments that they write into.
_OPERATORS: dict[str, dict[str, Sequence[int]]] = {
    "nms": {"nms": ()},
    "roi_align": {"roi_align_forward": (2, 3, 4), "roi_align_backward": (4,)},
    "focal_loss": {"sigmoid_focal_loss_forward": (3,), "sigmoid_focal_loss_backward": (3,)},
}


def serve_low_precision() -> None:
    """Have mmcv's functions call these operators through `in_float32`. Safe to call again."""
    for name, operators in _OPERATORS.items():
        module: Any = import_module(f"mmcv.ops.{name}")
        if not isinstance(module.ext_module, _AnyPrecision):
            module.ext_module = _AnyPrecision(module.ext_module, operators)


class _AnyPrecision:
    """An extension module, some of whose operators take any floating dtype; the others are its own."""

    def __init__(self, extension: Any, operators: dict[str, Sequence[int]]) -> None:
        self._extension, self._operators = extension, operators

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._extension, name)
        return partial(in_float32, function, self._operators[name]) if name in self._operators else function


def in_float32(function: Callable[..., Any], written: Sequence[int], *arguments: Any, **settings: Any) -> Any:
    """Call an operator with its bfloat16 and half arguments in float32.

    Args:
        written: places of the arguments that the operator writes into; what it writes is cast to their dtype.
    """
    cast = [one.float() if _is_low(one) else one for one in arguments]
    result = function(*cast, **settings)
    for place in written:
        if cast[place] is not arguments[place]:
            arguments[place].copy_(cast[place])
    return result


def _is_low(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
