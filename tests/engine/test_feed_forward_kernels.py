"""Kernels of feed-forward networks against their plain PyTorch in float64, as in test_kernels.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_inputs import MAPS, SMALL, Check, MakeRows, fit, layer, poison, tokens

from sparsevit.engine.kernels import chained_feed_forward, feed_forward, held_feed_forward, shared_feed_forward
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
@pytest.mark.parametrize(("kernel", "channels"), [(chained_feed_forward, 192), (shared_feed_forward, 384)])
def test_feed_forward_of_compact_rows(
    make_rows: MakeRows,
    device: torch.device,
    dtype: torch.dtype,
    as_double: Callable[[Any], Any],
    error: Callable[[Tensor, Tensor], float],
    tolerance: dict[torch.dtype, float],
    kernel: ModuleType,
    channels: int,
    size: tuple[int, int],
    shift: int,
) -> None:
    """Launch after launch, of few and many rows: through one exchange each block takes turns of its own.

    Rows that are not numbers stay so, alone, and nobody waits for them.
    """
    first = layer(channels, 4 * channels, device, dtype, normed=True)
    second = layer(4 * channels, channels, device, dtype, normed=False)
    shared = kernel is shared_feed_forward
    if not (kernel.shares if shared else kernel.chains)(first.weight, first):
        pytest.skip("made for an H100 or H200")
    exchange = [kernel.make_exchange(device)] if shared else []
    run, reference = (getattr(kernel, kernel.__name__.rpartition(".")[2] + end) for end in ("", "_reference"))
    batches = ((4, 14), (1, 3), (4, 13), (4, 13), (1, 3), (4, 14), (4, 14))
    for batch, kept in batches:
        rows = make_rows(batch, size, 7, shift, kept)
        between = tokens(1, (rows.total, 1), channels, device, dtype)
        between[5], between[-1, 70] = math.nan, math.inf
        parts = between.float().unflatten(1, (-1, 64))
        between_sums = torch.stack([parts.sum(2), parts.square().sum(2)], 2)
        out = poison(batch * size[0] * size[1], channels, device=device, dtype=dtype)
        sums = poison(len(out), slots(channels), 2, device=device, dtype=torch.float32)
        expected = out.double()
        keywords = {"target": rows, "between_sums": between_sums}
        reference(*map(as_double, (between, first, second)), expected, *exchange, **keywords, sums=sums.clone())
        run(between, first, second, out, *exchange, **keywords, sums=sums)
        places = rows.flat()
        none = {5, rows.total - 1}
        right = [place for number, place in enumerate(places.tolist()) if place >= 0 and number not in none]
        assert error(out[right], expected[right]) < tolerance[dtype]
        fit(sums[right], out[right])
        others = torch.ones(len(out), dtype=torch.bool, device=device)
        others[right] = False
        assert out[others].isnan().all()
        assert sums[others, 0].isnan().all()
    assert all(each.epochs.max() == len(batches) for each in exchange)


def test_feed_forward_of_compact_rows_is_the_same_network(make_rows: MakeRows, device: torch.device) -> None:
    rows = make_rows(2, (9, 12), 7, 3, 3)
    first = layer(32, 128, device, torch.float64, normed=True)
    second = layer(128, 32, device, torch.float64, normed=False)
    x = tokens(2, (9, 12), 32, device, torch.float64)
    between, before, before_sums = rows.gather(x), x.clone(), sums_of(x)
    sums = before_sums.clone()
    feed_forward.feed_forward_reference(x, first, second, rows, sums, SMALL)
    for reference, exchange in (
        (chained_feed_forward.chained_feed_forward_reference, []),
        (shared_feed_forward.shared_feed_forward_reference, [shared_feed_forward.make_exchange(device)]),
    ):
        out, out_sums = before.clone(), before_sums.clone()
        reference(between, first, second, out, *exchange, target=rows, between_sums=sums_of(between), sums=out_sums)
        torch.testing.assert_close(out, x)
        torch.testing.assert_close(out_sums, sums)
