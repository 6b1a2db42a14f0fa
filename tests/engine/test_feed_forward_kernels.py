"""Kernels of feed-forward networks against their plain PyTorch in float64, as in test_kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_inputs import MAPS, SMALL, Check, MakeRows, fit, layer, poison, tokens

from sparsevit.engine.kernels import feed_forward, held_feed_forward, shared_feed_forward
from sparsevit.engine.kernels.sums import slots, sums_of

pytestmark = pytest.mark.usefixtures("seeded")


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
