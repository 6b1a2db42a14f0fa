"""Tables of windows, shift masks and rankings, against the rolling and padding that they replace."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.model.block import SwinBlock
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


@given(st.data(), sides, sides, st.integers(2, 7), st.booleans())
def test_ranking_equals_brute_force(data: st.DataObject, height: int, width: int, window: int, shifted: bool) -> None:
    table = window_table(height, width, window, window // 2 if shifted else 0, CPU)
    # Small whole numbers: sums are exact, and windows of the same activity are frequent.
    values = st.lists(st.integers(0, 3), min_size=height * width, max_size=height * width)
    images = data.draw(st.lists(values, min_size=1, max_size=2))
    ranking = rank_windows(torch.tensor(images, dtype=torch.float32), table)
    for image, ranked in zip(images, ranking.tolist(), strict=True):
        scores = [sum(image[t] ** 2 for t in row if t < len(image)) for row in table.index.tolist()]
        assert ranked == sorted(range(len(scores)), key=lambda i: (-scores[i], i))  # of equals, the first


def block(window: int, shift: int, **arguments: bool) -> SwinBlock:
    settings = {"qkv_bias": True, "qk_scale": None, "drop": 0.0, "attn_drop": 0.0, "drop_path": 0.0, "with_cp": False}
    settings |= {"pad_before_norm": True}
    torch.manual_seed(0)
    return SwinBlock(4, 2, window=window, shift=shift, hidden=8, **{**settings, **arguments}).eval()


@given(st.data(), sides, sides, st.integers(2, 7), st.booleans())
@torch.no_grad()
def test_gather_then_scatter_is_the_identity_and_touches_kept_windows_alone(
    data: st.DataObject, height: int, width: int, window: int, shifted: bool
) -> None:
    shift, tokens = window // 2 if shifted else 0, height * width
    table = window_table(height, width, window, shift, CPU)
    order = st.permutations(range(table.windows)).map(lambda windows: windows[: max(1, len(windows) // 2)])
    kept = torch.tensor([data.draw(order) for _ in range(2)])
    before = torch.randn(2, tokens + table.padded, 4, generator=torch.Generator().manual_seed(tokens))
    before[:, tokens:] = 0
    inside = torch.zeros(2, tokens, dtype=torch.bool)
    for image, windows in enumerate(kept):
        inside[image, table.index[windows][table.index[windows] < tokens]] = True

    model = block(window, shift)
    after = model(before.clone(), table, kept)
    assert torch.equal((after != before)[:, :tokens].any(-1), inside)
    assert not after[:, tokens:].any()  # the spare row is zeros again
    for branch in (model.attn.w_msa.proj, model.ffn.layers[1]):
        branch.weight.zero_()
        branch.bias.zero_()
    assert torch.equal(model(before.clone(), table, kept), before)


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
