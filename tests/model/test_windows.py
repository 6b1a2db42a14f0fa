"""Tables of windows, shift masks and rankings, against the rolling and padding that they replace."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.model.windows import partition, rank_windows, token_magnitude, window_table

CPU = torch.device("cpu")
sides = st.integers(1, 23)
SIZES = [(14, 21), (7, 7), (8, 8), (13, 20), (3, 30), (1, 1)]


@given(height=sides, width=sides, window=st.integers(2, 7), shifted=st.booleans())
def test_every_token_stands_in_exactly_one_window(height: int, width: int, window: int, shifted: bool) -> None:
    table = window_table(height, width, window, window // 2 if shifted else 0, CPU)
    positions, tokens = table.index.numel(), height * width
    assert table.index.shape == (table.windows, window**2)
    expected = torch.cat([torch.arange(tokens), torch.full((positions - tokens,), tokens)])
    assert torch.equal(table.index.flatten().sort().values, expected)
    assert table.padded == (height % window != 0 or width % window != 0)


@given(height=sides, width=sides, window=st.integers(2, 7))
def test_a_shifted_table_is_roll_and_partition(height: int, width: int, window: int) -> None:
    shift = window // 2
    rows, columns = -(-height // window) * window, -(-width // window) * window
    grid = torch.full((rows, columns), height * width)
    grid[:height, :width] = torch.arange(height * width).view(height, width)
    rolled = grid.roll((-shift, -shift), (0, 1))
    assert torch.equal(window_table(height, width, window, shift, CPU).index, partition(rolled, window))
    assert torch.equal(window_table(height, width, window, 0, CPU).index, partition(grid, window))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [7, 4])
def test_masks_are_swins(size: tuple[int, int], window: int, reference: ModuleType) -> None:
    table = window_table(*size, window, window // 2, CPU)
    rows, columns = (-(-side // window) * window for side in size)
    assert table.masks is not None
    assert torch.equal(table.masks[table.mask_kind], reference.shift_mask(rows, columns, window, window // 2))
    assert window_table(*size, window, 0, CPU).masks is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 3])
def test_ranking_equals_brute_force(size: tuple[int, int], shift: int) -> None:
    magnitude = torch.rand(3, size[0] * size[1], generator=torch.Generator().manual_seed(1))
    table = window_table(*size, 7, shift, CPU)
    ranking = rank_windows(magnitude, table)
    for image, ranked in zip(magnitude.tolist(), ranking.tolist(), strict=True):
        norms = [sum(image[t] ** 2 for t in row if t < len(image)) ** 0.5 for row in table.index.tolist()]
        assert ranked == sorted(range(len(norms)), key=norms.__getitem__, reverse=True)


def test_magnitudes_of_half_precision_do_not_overflow() -> None:
    x = torch.full((1, 98, 8), 200.0, dtype=torch.float16)
    x[:, 49:] *= 2
    magnitude = token_magnitude(x)
    assert magnitude.dtype == torch.float32
    assert rank_windows(magnitude, window_table(14, 7, 7, 0, CPU)).tolist() == [[1, 0]]  # 49 * 400² is past float16


def test_flat_rows_address_each_images_own_tokens() -> None:
    table = window_table(4, 8, 4, 0, CPU)
    rows = table.rows(2, 32, torch.tensor([[1], [0]]))
    assert torch.equal(rows.view(2, 16), torch.stack([table.index[1], table.index[0] + 32]))


def test_tables_are_made_once_and_serve_training_after_inference() -> None:
    with torch.inference_mode():
        table = window_table(9, 9, 7, 3, CPU)
    assert window_table(9, 9, 7, 3, CPU) is table
    assert not table.index.is_inference()
