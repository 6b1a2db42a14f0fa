"""Compiled operators get float32 where they take nothing else, and what they write arrives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401  makes mmcv importable
from sparsevit.openmmlab.low_precision import _AnyPrecision, in_float32


def add(first: Tensor, second: Tensor, output: Tensor, *, factor: float) -> str:
    """Stands for a compiled operator: float32 alone, written into its last argument."""
    assert first.dtype == second.dtype == output.dtype == torch.float32
    output.copy_((first + second) * factor)
    return "done"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_written_arguments_keep_their_dtype(dtype: torch.dtype) -> None:
    first, second, output = torch.ones(3, dtype=dtype), torch.full((3,), 401.5), torch.zeros(3, dtype=dtype)
    assert in_float32(add, (2,), first, second, output, factor=2.0) == "done"
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), torch.full((3,), 805.0).to(dtype).float())
    assert torch.equal(first, torch.ones(3, dtype=dtype))


def test_float32_goes_through_untouched() -> None:
    seen: list[Any] = []
    output = torch.zeros(2)
    in_float32(lambda *arguments: seen.extend(arguments), (0,), output, 3)
    assert seen[0] is output


def test_other_operators_are_the_extensions_own() -> None:
    extension = SimpleNamespace(add=add, other=add)
    module = _AnyPrecision(extension, {"add": (2,)})
    assert module.other is add
    output = torch.zeros(1, dtype=torch.bfloat16)
    module.add(torch.ones(1), torch.ones(1), output, factor=1.0)
    assert output.item() == 2
    with pytest.raises(AttributeError):
        module.third  # noqa: B018
