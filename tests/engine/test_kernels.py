"""Every kernel against its plain PyTorch in float64: fresh random input, outputs poisoned with NaN, odd sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from sparsevit.engine.kernels import (
    attention,
    embed,
    feed_forward,
    held_feed_forward,
    linear,
    merge,
    norm,
    pair_attention,
    shared_feed_forward,
    window_attention,
)
from sparsevit.engine.kernels.folded import Weights
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import slots, sums_of
from sparsevit.engine.tuning import Tile, WindowChoice
from sparsevit.engine.weights import fold, padded_logits
from sparsevit.model.windows import shift_masks

pytestmark = pytest.mark.usefixtures("seeded")

Check = Callable[..., Tensor]
MakeRows = Callable[..., Rows]
SMALL = Tile(32, 64, 16, 4, 2)
# Maps in tokens, window, shift, kept windows of each image: whole, padded, one window, heads and tails of rankings.
MAPS = [((14, 14), 7, 0, 4), ((9, 12), 7, 3, 3), ((7, 5), 7, 3, 1), ((8, 13), 4, 2, 5)]


def layer(
    inputs: int, outputs: int, device: torch.device, dtype: torch.dtype, *, normed: bool, after: bool = False
) -> Weights:
    weights, before = nn.Linear(inputs, outputs), nn.LayerNorm(inputs)
    with torch.no_grad():
        before.weight.add_(torch.randn(inputs) * 0.3)
        before.bias.add_(torch.randn(inputs) * 0.3)
        weights.weight.normal_(std=inputs**-0.5)
    return fold(weights.to(device), before.to(device) if normed else None, dtype, after=after)


def logits(heads: int, window: int, shift: int, device: torch.device) -> Tensor:
    bias = torch.randn(heads, window**2, window**2, device=device)
    return padded_logits(bias, shift_masks(window, shift) if shift else None)


def poison(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, device=device, dtype=dtype)


@pytest.fixture(params=[False, True], ids=["", "maps"])
def maps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether blocks are loaded and stored by tensor maps, which the interpreter has too."""
    for module in (linear, merge, pair_attention):
        monkeypatch.setattr(module, "has_maps", lambda x: True)
    if request.param and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no tensor maps before compute capability 9.0")
    return bool(request.param)


def fit(sums: Tensor, x: Tensor) -> None:
    """Slots add up to the sums of rows, up to the rounding of the rows."""
    torch.testing.assert_close(sums.sum(1), sums_of(x.float()).sum(1), rtol=1e-2, atol=0.5)


def tokens(batch: int, size: tuple[int, int], channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows whose mean is not 0, as a norm must find it."""
    return (torch.randn(batch * size[0] * size[1], channels, device=device) * 2 + 0.7).to(dtype)


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


@pytest.mark.parametrize(("size", "window", "shift", "kept"), MAPS)
@pytest.mark.parametrize(
    ("channels", "held"),
    [(16, False), (32, False), (80, False), (96, False), (192, False), (16, True), (32, True), (96, True)],
)
def test_feed_forward(
    check: Check,
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int],
    window: int,
    shift: int,
    kept: int,
    channels: int,
    held: bool,
) -> None:
    rows = make_rows(2, size, window, shift, kept)
    first = layer(channels, 4 * channels, device, dtype, normed=True)
    second = layer(4 * channels, channels, device, dtype, normed=False)
    x = tokens(2, size, channels, device, dtype)
    before = x.clone()
    sums = sums_of(x.float())
    arguments = (x, first, second, rows, sums, SMALL)
    run = held_feed_forward.held_feed_forward if held else feed_forward.feed_forward
    check(run, feed_forward.feed_forward_reference, arguments, 0)
    fit(sums, x)
    others = torch.ones(len(x), dtype=torch.bool, device=device)
    others[rows.flat()[rows.flat() >= 0]] = False
    assert torch.equal(x[others], before[others])


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "shift"), [((42, 42), 0), ((40, 37), 3)])
def test_feed_forward_that_programs_share(
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    as_double: Callable[[Any], Any],
    error: Callable[[Tensor, Tensor], float],
    tolerance: dict[torch.dtype, float],
    size: tuple[int, int],
    shift: int,
) -> None:
    """Launch after launch through one exchange, where each block takes turns of its own."""
    first = layer(384, 1536, device, dtype, normed=True)
    second = layer(1536, 384, device, dtype, normed=False)
    if not shared_feed_forward.shares(first.weight, first):
        pytest.skip("made for an H100 or H200")
    exchange = shared_feed_forward.make_exchange(device)
    batches = ((4, 14), (1, 3), (4, 13), (4, 13), (1, 3), (4, 14), (4, 14))
    for batch, kept in batches:
        rows = make_rows(batch, size, 7, shift, kept)
        between = tokens(1, (rows.total, 1), 384, device, dtype)
        parts = between.float().unflatten(1, (-1, 64))
        between_sums = torch.stack([parts.sum(2), parts.square().sum(2)], 2)
        out = poison(batch * size[0] * size[1], 384, device=device, dtype=dtype)
        sums = poison(len(out), slots(384), 2, device=device, dtype=torch.float32)
        expected = out.double()
        keywords = {"target": rows, "between_sums": between_sums}
        shared_feed_forward.shared_feed_forward_reference(
            *map(as_double, (between, first, second)), expected, exchange, **keywords, sums=sums.clone()
        )
        shared_feed_forward.shared_feed_forward(between, first, second, out, exchange, **keywords, sums=sums)
        written = torch.zeros(len(out), dtype=torch.bool, device=device)
        written[rows.flat()[rows.flat() >= 0]] = True
        assert error(out[written], expected[written]) < tolerance[dtype]
        fit(sums[written], out[written])
        assert out[~written].isnan().all()
        assert sums[~written].isnan().all()
    assert exchange.epochs.max() == len(batches)


def test_a_shared_feed_forward_network_is_the_same_network(make_rows: MakeRows, device: torch.device) -> None:
    rows = make_rows(2, (9, 12), 7, 3, 3)
    first = layer(32, 128, device, torch.float64, normed=True)
    second = layer(128, 32, device, torch.float64, normed=False)
    x = tokens(2, (9, 12), 32, device, torch.float64)
    between, out, sums, out_sums = rows.gather(x), x.clone(), sums_of(x), sums_of(x)
    feed_forward.feed_forward_reference(x, first, second, rows, sums, SMALL)
    shared_feed_forward.shared_feed_forward_reference(
        between, first, second, out, shared_feed_forward.make_exchange(device),
        target=rows, between_sums=sums_of(between), sums=out_sums,
    )  # fmt: skip
    torch.testing.assert_close(out, x)
    torch.testing.assert_close(out_sums, sums)


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
