"""Attention kernels against their plain PyTorch in float64, as in test_kernels.py."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

from kernel_inputs import MAPS, Check, MakeRows, layer, logits, poison, tokens

from sparsevit.engine.kernels import attention, pair_attention, window_attention
from sparsevit.engine.kernels.sums import sums_of
from sparsevit.engine.tuning import Tile, WindowChoice

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize(("size", "window", "shift", "kept"), MAPS)
@pytest.mark.parametrize(("heads", "channels"), [(1, 16), (3, 96)])
@pytest.mark.parametrize("programs", [1, 100])
def test_attention(
    check: Check,
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int],
    window: int,
    shift: int,
    kept: int,
    heads: int,
    channels: int,
    programs: int,
) -> None:
    rows = make_rows(2, size, window, shift, kept)
    qkv = torch.randn(rows.total, 3 * channels, device=device).to(dtype)
    out = poison(rows.total, channels, device=device, dtype=dtype)
    grid = (math.ceil(size[0] / window), math.ceil(size[1] / window))
    arguments = (qkv, logits(heads, window, shift, device), rows, out)
    check(attention.attention, attention.attention_reference, arguments, 3, window=window, grid=grid, programs=programs)


@pytest.mark.parametrize(("size", "window", "shift", "kept"), MAPS)
@pytest.mark.parametrize(("heads", "channels"), [(1, 16), (3, 96)])
@pytest.mark.parametrize(("after", "each"), [(False, 1), (True, 1), (False, 3)])
def test_attention_with_its_queries_keys_and_values(
    check: Check,
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int],
    window: int,
    shift: int,
    kept: int,
    heads: int,
    channels: int,
    after: bool,
    each: int,
) -> None:
    rows = make_rows(2, size, window, shift, kept)
    x = tokens(2, size, channels, device, dtype)
    weights = layer(channels, 3 * channels, device, dtype, normed=True, after=after)
    out = poison(rows.total, channels, device=device, dtype=dtype)
    arguments = (x, weights, logits(heads, window, shift, device), rows, sums_of(x.float()), out)
    check(
        window_attention.window_attention,
        window_attention.window_attention_reference,
        (*arguments, WindowChoice(each)),
        5,
        window=window,
        grid=(math.ceil(size[0] / window), math.ceil(size[1] / window)),
    )


@pytest.mark.parametrize(("size", "window", "shift", "kept"), MAPS)
@pytest.mark.parametrize(
    ("heads", "channels", "depth", "after", "settled"),
    [(2, 32, 16, False, True), (4, 128, 32, True, True), (4, 128, 32, False, False)],
)
def test_attention_of_pairs_of_heads(
    check: Check,
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    maps: bool,
    size: tuple[int, int],
    window: int,
    shift: int,
    kept: int,
    heads: int,
    channels: int,
    depth: int,
    after: bool,
    settled: bool,
) -> None:
    rows = make_rows(2, size, window, shift, kept)
    x = tokens(2, size, channels, device, dtype)
    weights = layer(channels, 3 * channels, device, dtype, normed=True, after=after)
    out = poison(rows.total, channels, device=device, dtype=dtype)
    arguments = (x, weights, logits(heads, window, shift, device), rows, sums_of(x.float()), out)
    check(
        pair_attention.pair_attention,
        pair_attention.pair_attention_reference,
        (*arguments, Tile(64, 6 * channels // heads, depth, 4, 3, maps=maps)),
        5,
        window=window,
        grid=(math.ceil(size[0] / window), math.ceil(size[1] / window)),
        settled=settled or shift > 0,
    )
