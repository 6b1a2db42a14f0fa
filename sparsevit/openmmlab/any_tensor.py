"""mmcv-full's compiled operators on the tensors that models have: any memory layout, any floating dtype.

They read memory as if it were contiguous, and so compute nonsense from channels-last features, without a word. They
have no bfloat16 kernels, and take half features with half boxes alone, whose coordinates are off by whole pixels. Here
they get contiguous float32. What is that already is passed on as it is. On a GPU RoIAlign of no boxes is an error to
them, a launch of nothing; here it is not called, as its results are empty or were zeroed before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Operator(NamedTuple):
    """Places of an operator's arguments: those that it writes into, and boxes without which there is nothing to do."""

    written: Sequence[int]
    boxes: int | None = None


# Module of mmcv.ops: its operators.
_OPERATORS: dict[str, dict[str, Operator]] = {
    "nms": {"nms": Operator(())},
    "roi_align": {"roi_align_forward": Operator((2, 3, 4), 1), "roi_align_backward": Operator((4,), 1)},
    "focal_loss": {
        "sigmoid_focal_loss_forward": Operator((3,)),
        "sigmoid_focal_loss_backward": Operator((3,)),
    },
}


def serve_any_tensor() -> None:
    """Have mmcv's functions call these operators through `with_plain_tensors`. Safe to call again."""
    for name, operators in _OPERATORS.items():
        module: Any = import_module(f"mmcv.ops.{name}")
        if not isinstance(module.ext_module, _AnyTensor):
            module.ext_module = _AnyTensor(module.ext_module, operators)


class _AnyTensor:
    """An extension module, some of whose operators take any tensor; the others are its own."""

    def __init__(self, extension: Any, operators: dict[str, Operator]) -> None:
        self._extension, self._operators = extension, operators

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._extension, name)
        if name not in self._operators:
            return function
        written, boxes = self._operators[name]
        return partial(with_plain_tensors, function, written, boxes)


def with_plain_tensors(
    function: Callable[..., Any], written: Sequence[int], boxes: int | None, *arguments: Any, **settings: Any
) -> Any:
    """Call an operator with its tensors contiguous, and in float32 where they are bfloat16 or half.

    Args:
        written: places of the arguments that the operator writes into; what it writes is copied to them.
        boxes: place of the boxes without which it is not called.
    """
    if boxes is not None and not len(arguments[boxes]):
        return None
    plain = [_plain(one) if isinstance(one, Tensor) else one for one in arguments]
    result = function(*plain, **settings)
    for place in written:
        if plain[place] is not arguments[place]:
            arguments[place].copy_(plain[place])
    return result


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).contiguous()
