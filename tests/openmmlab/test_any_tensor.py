"""Compiled operators get contiguous float32, as they take nothing else, and what they write arrives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401  makes mmcv importable
from sparsevit.openmmlab.any_tensor import Operator, _AnyTensor, with_plain_tensors


def add(first: Tensor, second: Tensor, output: Tensor, *, factor: float) -> str:
    """Stands for a compiled operator: float32 alone, written into its last argument."""
    assert first.dtype == second.dtype == output.dtype == torch.float32
    output.copy_((first + second) * factor)
    return "done"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_written_arguments_keep_their_dtype(dtype: torch.dtype) -> None:
    first, second, output = torch.ones(3, dtype=dtype), torch.full((3,), 401.5), torch.zeros(3, dtype=dtype)
    assert with_plain_tensors(add, (2,), None, first, second, output, factor=2.0) == "done"
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), torch.full((3,), 805.0).to(dtype).float())
    assert torch.equal(first, torch.ones(3, dtype=dtype))


def test_strided_arguments_are_made_contiguous_and_written_back() -> None:
    output = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    inputs = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    layouts: list[bool] = []

    def copy(source: Tensor, target: Tensor) -> None:
        layouts.extend((source.is_contiguous(), target.is_contiguous()))
        target.copy_(source)

    with_plain_tensors(copy, (1,), None, inputs, output)
    assert layouts == [True, True]
    assert torch.equal(output, inputs)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_contiguous_float32_goes_through_untouched() -> None:
    seen: list[Any] = []
    output = torch.zeros(2)
    with_plain_tensors(lambda *arguments: seen.extend(arguments), (0,), None, output, 3)
    assert seen[0] is output


def test_other_operators_are_the_extensions_own() -> None:
    extension = SimpleNamespace(add=add, other=add)
    module = _AnyTensor(extension, {"add": Operator((2,))})
    assert module.other is add
    output = torch.zeros(1, dtype=torch.bfloat16)
    module.add(torch.ones(1), torch.ones(1), output, factor=1.0)
    assert output.item() == 2
    with pytest.raises(AttributeError):
        module.third  # noqa: B018


def test_what_has_no_boxes_to_work_on_is_not_called() -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("called")

    output = torch.zeros(0, 3)
    assert with_plain_tensors(fail, (1,), 0, torch.zeros(0, 5), output) is None
    with pytest.raises(AssertionError, match="called"):
        with_plain_tensors(fail, (1,), 0, torch.zeros(1, 5), output)
