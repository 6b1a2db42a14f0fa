"""Every kernel against its plain PyTorch in float64: fresh random input, outputs poisoned with NaN, odd sizes.

Those of attention and of feed-forward networks have files of their own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_inputs import MAPS, SMALL, Check, MakeRows, fit, layer, poison, tokens

from sparsevit.engine.kernels import embed, linear, merge, norm
from sparsevit.engine.kernels.sums import slots, sums_of
from sparsevit.engine.tuning import Tile

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("rows", [1, 33, 100])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 80), (96, 32), (32, 144)])
@pytest.mark.parametrize("activate", [False, True])
def test_linear_on_compact_rows(
    check: Check,
    device: torch.device,
    dtype: torch.dtype,
    maps: bool,
    rows: int,
    inputs: int,
    outputs: int,
    activate: bool,
) -> None:
    weights = layer(inputs, outputs, device, dtype, normed=activate)
    x, out = tokens(1, (rows, 1), inputs, device, dtype), poison(rows, outputs, device=device, dtype=dtype)
    arguments = (x, weights, out, replace(SMALL, maps=maps))
    check(linear.linear, linear.linear_reference, arguments, 2, sums=sums_of(x.float()), activate=activate)


@pytest.mark.parametrize(("size", "window", "shift", "kept"), MAPS)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("batch", "settled"), [(1, True), (3, False)])
def test_linear_gathers_rows_and_treats_padding_as_told(
    check: Check,
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    maps: bool,
    size: tuple[int, int],
    window: int,
    shift: int,
    kept: int,
    after: bool,
    batch: int,
    settled: bool,
) -> None:
    rows = make_rows(batch, size, window, shift, kept)
    weights = layer(32, 48, device, dtype, normed=True, after=after)
    out = poison(rows.total, 48, device=device, dtype=dtype)
    x = tokens(batch, size, 32, device, dtype)
    sums = sums_of(x.float())
    arguments = (x, weights, out, replace(SMALL, maps=maps))
    check(linear.linear, linear.linear_reference, arguments, 2, source=rows, sums=sums, settled=settled)


@pytest.mark.parametrize(("size", "window", "shift", "kept"), MAPS)
@pytest.mark.parametrize(
    ("tile", "outputs"),
    [
        (SMALL, 80),
        (Tile(128, 64, 16, 4, 2), 80),
        (Tile(32, 192, 16, 4, 2), 272),
        (Tile(32, 192, 16, 4, 2, early=True), 160),
    ],
    ids=["small", "large", "two parts", "two parts, early"],
)
def test_linear_adds_to_kept_rows_and_leaves_others_alone(
    check: Check,
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    maps: bool,
    size: tuple[int, int],
    window: int,
    shift: int,
    kept: int,
    tile: Tile,
    outputs: int,
) -> None:
    rows = make_rows(2, size, window, shift, kept)
    buffer = tokens(2, size, outputs, device, dtype)
    before = buffer.clone()
    x = tokens(1, (rows.total, 1), 32, device, dtype)
    weights = layer(32, outputs, device, dtype, normed=False)
    sums = sums_of(buffer.float())
    tile = replace(tile, maps=maps)
    keywords = {"residual": before.clone(), "residual_source": rows, "target": rows, "sums": sums}
    check(linear.linear, linear.linear_reference, (x, weights, buffer, tile), 2, **keywords)
    fit(sums, buffer)
    others = torch.ones(len(buffer), dtype=torch.bool, device=device)
    others[rows.flat()[rows.flat() >= 0]] = False
    assert torch.equal(buffer[others], before[others])
    assert not torch.equal(buffer[~others], before[~others])


@pytest.mark.parametrize(("size", "window", "shift", "kept"), MAPS)
@pytest.mark.parametrize(("gathered", "early"), [(False, True), (True, True), (True, False)])
def test_a_residual_may_lie_elsewhere_than_results(
    check: Check,
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    maps: bool,
    size: tuple[int, int],
    window: int,
    shift: int,
    kept: int,
    gathered: bool,
    early: bool,
) -> None:
    """In the token buffer while results are compact, as after attention, or the other way round, as after a block."""
    rows = make_rows(2, size, window, shift, kept)
    x = tokens(1, (rows.total, 1), 32, device, dtype)
    weights = layer(32, 80, device, dtype, normed=False)
    tile = replace(SMALL, maps=maps, early=early)
    buffer, compact = tokens(2, size, 80, device, dtype), tokens(1, (rows.total, 1), 80, device, dtype)
    before, residual = buffer.clone(), buffer if gathered else compact
    out = poison(rows.total, 80, device=device, dtype=dtype) if gathered else buffer
    sums = sums_of(out.float())
    keywords = {"residual_source" if gathered else "target": rows, "residual": residual, "sums": sums}
    check(linear.linear, linear.linear_reference, (x, weights, out, tile), 2, **keywords)
    fit(sums, out)
    if gathered:
        assert torch.equal(buffer, before)
    others = torch.ones(len(buffer), dtype=torch.bool, device=device)
    others[rows.flat()[rows.flat() >= 0]] = False
    assert torch.equal(buffer[others], before[others])


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 3), (1, 1)])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (32, 144), (96, 80)])
@pytest.mark.parametrize(("columns", "maps"), [(64, True), (192, False)], indirect=["maps"])
def test_merging(
    check: Check,
    device: torch.device,
    dtype: torch.dtype,
    maps: bool,
    size: tuple[int, int],
    normed: bool,
    inputs: int,
    outputs: int,
    columns: int,
) -> None:
    weights = layer(4 * inputs, outputs, device, dtype, normed=normed)
    out = poison(2 * math.ceil(size[0] / 2) * math.ceil(size[1] / 2), outputs, device=device, dtype=dtype)
    x = tokens(2, size, inputs, device, dtype)
    sums = sums_of(x.float())
    sums[:, 1:] = torch.randn_like(sums[:, 1:])
    sums[:, 0] -= sums[:, 1:].sum(1)
    out_sums = poison(len(out), slots(outputs), 2, device=device, dtype=torch.float32)
    depth = 32 if size[1] % 2 else 64  # in even widths a step may take channels of two tokens
    tile = Tile(32, columns, depth, 4, 2, maps=maps)
    magnitudes = poison(math.ceil(outputs / tile.columns), len(out), device=device, dtype=torch.float32)
    check(merge.merge, merge.merge_reference, (x, sums, size, weights, out, out_sums, magnitudes, tile), 4)
    fit(out_sums, out)
    rounding = max(torch.finfo(dtype).eps / 2, 1e-4)  # of the rows, which magnitudes are not
    torch.testing.assert_close(magnitudes.sum(0), out.float().abs().sum(1), rtol=rounding, atol=1e-4)


def test_magnitudes_are_left_out_where_no_windows_are_ranked(device: torch.device, dtype: torch.dtype) -> None:
    images, weight = torch.randn(1, 3, 8, 8, device=device).to(dtype), torch.randn(48, 32, device=device).to(dtype)
    merging = layer(4 * 32, 48, device, dtype, normed=True)

    def run(ranked: bool) -> list[Tensor]:
        rows, joined = (torch.zeros(n, channels, device=device, dtype=dtype) for n, channels in ((4, 32), (1, 48)))
        sums, joined_sums = torch.zeros(4, 1, 2, device=device), torch.zeros(1, 1, 2, device=device)
        magnitudes, joined_magnitudes = torch.zeros(1, 4, device=device), torch.zeros(1, 1, device=device)
        wanted = magnitudes if ranked else None
        embed.embed(images, weight, torch.zeros(32, device=device), None, None, 4, rows, sums, wanted)
        wanted = joined_magnitudes if ranked else None
        merge.merge(rows, sums, (2, 2), merging, joined, joined_sums, wanted, SMALL)
        assert bool(magnitudes.any()) == bool(joined_magnitudes.any()) == ranked
        return [rows, joined, sums, joined_sums]

    for one, other in zip(run(True), run(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("rows", "channels"), [(1, 16), (50, 96), (7, 768)])
def test_norm(check: Check, device: torch.device, dtype: torch.dtype, rows: int, channels: int) -> None:
    scale, shift = torch.randn(2, channels, device=device)
    out = poison(rows, channels, device=device, dtype=dtype)
    x = tokens(1, (rows, 1), channels, device, dtype)
    check(norm.norm, norm.norm_reference, (x, scale, shift, 1e-5, out), 4)


@pytest.mark.parametrize("size", [(28, 28), (30, 25), (27, 36), (4, 3)])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("positioned", [False, True])
@pytest.mark.parametrize(("colours", "patch"), [(3, 4), (1, 2), (4, 3)])
def test_embedding(
    check: Check,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int],
    normed: bool,
    positioned: bool,
    colours: int,
    patch: int,
) -> None:
    channels, rows, pixels = 48, math.ceil(size[0] / patch) * math.ceil(size[1] / patch), colours * patch**2
    weight = torch.randn(pixels, channels, device=device) / pixels**0.5
    bias, scale, shift = torch.randn(3, channels, device=device)
    if normed:
        weight, bias = weight - weight.mean(1, keepdim=True), bias - bias.mean()
    position = torch.randn(rows, channels, device=device) if positioned else None
    out = poison(2 * rows, channels, device=device, dtype=dtype)
    images = torch.randn(2, colours, *size, device=device).to(dtype)
    sums = poison(2 * rows, slots(channels), 2, device=device, dtype=torch.float32)
    magnitudes = poison(1, 2 * rows, device=device, dtype=torch.float32)
    norms = (scale, shift, 1e-5) if normed else None
    arguments = (images, weight.to(dtype), bias, norms, position, patch, out, sums, magnitudes)
    check(embed.embed, embed.embed_reference, arguments, 6)
    fit(sums, out)
    torch.testing.assert_close(magnitudes[0], out.float().abs().sum(1), rtol=1e-4, atol=1e-4)
