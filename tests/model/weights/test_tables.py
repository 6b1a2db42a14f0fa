"""Bias tables and absolute positions in another size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sparsevit.model import SparseSwin
from sparsevit.model.weights import resize_tables, window_of
from sparsevit.model.weights.tables import resized, window_of_table

TABLE = "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"
windows = st.integers(2, 14)


@given(before=windows, after=windows, heads=st.integers(1, 4))
def test_each_head_is_interpolated_for_itself(before: int, after: int, heads: int) -> None:
    table = torch.randn((2 * before - 1) ** 2, heads, generator=torch.Generator().manual_seed(before))
    found = resize_tables({TABLE: table, "other": table}, after)
    assert found["other"] is table
    assert found[TABLE].shape == ((2 * after - 1) ** 2, heads)
    assert window_of_table(found[TABLE]) == window_of(found) == after
    for head in range(heads):
        grid = table[:, head].reshape(1, 1, 2 * before - 1, 2 * before - 1)
        alone = F.interpolate(grid, size=(2 * after - 1,) * 2, mode="bicubic", align_corners=False)
        torch.testing.assert_close(found[TABLE][:, head], alone.flatten(), rtol=1e-5, atol=1e-5)


@given(before=windows, after=windows)
def test_a_constant_stays_one_and_symmetry_stays(before: int, after: int) -> None:
    side = 2 * before - 1
    torch.testing.assert_close(
        resized(TABLE, torch.full((side**2, 2), 0.7), ((2 * after - 1) ** 2, 2)),
        torch.full(((2 * after - 1) ** 2, 2), 0.7),
    )
    ramp = torch.linspace(-1, 1, side).repeat(side)[:, None]  # odd in the column, whatever the row
    out = resized(TABLE, ramp, ((2 * after - 1) ** 2, 1)).view(2 * after - 1, 2 * after - 1)
    torch.testing.assert_close(out, -out.flip(1), rtol=1e-5, atol=1e-5)


def test_its_own_size_and_other_shapes_are_left_as_they_are() -> None:
    table = torch.randn(49, 3)
    assert resized(TABLE, table, (49, 3)) is table
    for shape in ((169, 6), (170, 3), (169,)):
        assert resized(TABLE, table, shape) is table
    assert resized("head.weight", table, (169, 3)) is table
    assert [window_of_table(torch.ones(shape)) for shape in ((36, 2), (40, 2), (49,), (49, 2))] == [None, None, None, 4]
    assert window_of({"a": table}) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_stays_and_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    table = torch.randn(169, 3).to(dtype)
    found = resized(TABLE, table, (529, 3))
    assert found.dtype == dtype
    wide = resized(TABLE, table.double(), (529, 3))
    torch.testing.assert_close(found.double(), wide, rtol=2e-2, atol=1e-2)


@torch.no_grad()
def test_absolute_positions_are_resized_as_the_backbone_does_it(small: Callable[..., SparseSwin]) -> None:
    wide = small(use_abs_pos_embed=True, pretrain_img_size=96)
    position = resized("absolute_pos_embed", wide.absolute_pos_embed, (1, 8, 16, 16))
    narrow = small(use_abs_pos_embed=True, pretrain_img_size=64)
    narrow.load_state_dict({**wide.state_dict(), "absolute_pos_embed": position})
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(narrow(image), wide(image))
