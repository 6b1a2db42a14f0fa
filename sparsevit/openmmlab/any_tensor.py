"""mmcv-full's compiled operators on the tensors that models have: any memory layout, any floating dtype.

They read memory as if it were contiguous, and so compute nonsense from channels-last features, without a word. They
have no bfloat16 kernels, and take half features with half boxes alone, whose coordinates are off by whole pixels. Here
they get contiguous float32. What is that already is passed on as it is.
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


def serve_any_tensor() -> None:
    """Have mmcv's functions call these operators through `with_plain_tensors`. Safe to call again."""
    for name, operators in _OPERATORS.items():
        module: Any = import_module(f"mmcv.ops.{name}")
        if not isinstance(module.ext_module, _AnyTensor):
            module.ext_module = _AnyTensor(module.ext_module, operators)


class _AnyTensor:
    """An extension module, some of whose operators take any tensor; the others are its own."""

    def __init__(self, extension: Any, operators: dict[str, Sequence[int]]) -> None:
        self._extension, self._operators = extension, operators

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._extension, name)
        return partial(with_plain_tensors, function, self._operators[name]) if name in self._operators else function


def with_plain_tensors(function: Callable[..., Any], written: Sequence[int], *arguments: Any, **settings: Any) -> Any:
    """Call an operator with its tensors contiguous, and in float32 where they are bfloat16 or half.

    Args:
        written: places of the arguments that the operator writes into; what it writes is copied to them.
    """
    plain = [_plain(one) if isinstance(one, Tensor) else one for one in arguments]
    result = function(*plain, **settings)
    for place in written:
        if plain[place] is not arguments[place]:
            arguments[place].copy_(plain[place])
    return result


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).contiguous()
