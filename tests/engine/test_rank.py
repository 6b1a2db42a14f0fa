"""Ranking of windows against its plain PyTorch, to the last tie."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparsevit.engine.kernels import rank, rank_few
from sparsevit.engine.kernels.rows import Rows

pytestmark = pytest.mark.usefixtures("seeded")

Check = Callable[..., Tensor]
MakeRows = Callable[..., Rows]


@pytest.mark.parametrize(("size", "window"), [((14, 21), 7), ((20, 9), 7), ((36, 40), 2)])
@pytest.mark.parametrize("batch", [1, 3])
def test_ranking(
    check: Check, make_rows: MakeRows, device: torch.device, size: tuple[int, int], window: int, batch: int
) -> None:
    x = torch.randn(batch * size[0] * size[1], 144, device=device) * 2 + 0.7
    magnitudes = torch.full((3, len(x)), math.nan, device=device)
    check(rank.magnitude, rank.magnitude_reference, (x, magnitudes), 1)
    count = size[0] * size[1]
    places = torch.stack([in_order(make_rows, size, window, shift) for shift in (0, window // 2)])
    scores = torch.full((2, batch, places.shape[1]), math.nan, device=device)
    scores = check(rank.score, rank.score_reference, (magnitudes, places, scores), 2)
    equals(scores, places, count)


FEW = [((14, 21), 7), ((20, 9), 7), ((1, 1), 7), ((16, 16), 2), ((15, 16), 4), ((84, 77), 7), ((30, 32), 2)]


@pytest.mark.parametrize(("size", "window"), FEW)
def test_few_windows_are_scored_and_ranked_at_once(
    make_rows: MakeRows, device: torch.device, size: tuple[int, int], window: int
) -> None:
    """In whole numbers, so that scores are exact and many of them equal."""
    found, expected = _both_rankings(
        make_rows, size, window, torch.randint(0, 2, (5, 3 * size[0] * size[1])).to(device)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("size", "window"), FEW)
@pytest.mark.parametrize("parts", [1, 3])
def test_ranks_are_a_permutation_in_whatever_order_scores_are_summed(
    make_rows: MakeRows, device: torch.device, size: tuple[int, int], window: int, parts: int
) -> None:
    """Magnitudes that differ in their last bits alone: sums differ by the order that a compiler takes them in."""
    magnitudes = 1 + torch.rand(parts, 3 * size[0] * size[1], device=device) * 1e-6
    (scores, ranked, table), expected = _both_rankings(make_rows, size, window, magnitudes)
    torch.testing.assert_close(scores, expected[0], rtol=1e-5, atol=0)
    windows = torch.arange(ranked.shape[2], device=device).int().expand_as(ranked)
    assert torch.equal(ranked.sort(-1).values, windows)
    assert torch.equal(scores.gather(2, ranked.long()), scores.sort(-1, descending=True).values)
    assert torch.equal(table.sort(-1).values, expected[2].sort(-1).values)


def _both_rankings(
    make_rows: MakeRows, size: tuple[int, int], window: int, magnitudes: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Scores, ranks and tables of three images, of the kernel and of its reference."""
    places = torch.stack([in_order(make_rows, size, window, shift) for shift in (0, window // 2)])
    results = []
    for run in (rank_few.score_and_rank, rank_few.score_and_rank_reference):
        scores = torch.full((2, 3, places.shape[1]), math.nan, device=places.device)
        ranked = torch.full_like(scores, -7, dtype=torch.int32)
        table = torch.full((2, 3, places[0].numel()), -7, dtype=torch.int32, device=places.device)
        run(magnitudes.float(), places, size, scores, ranked, table, window=window)
        results.append([scores, ranked, table])
    return results[0], results[1]


def in_order(make_rows: MakeRows, size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Tokens of all windows, shape `(W, N)`."""
    rows = make_rows(1, size, window, shift)
    places = rows.table.view(-1, window**2)
    return torch.empty_like(places).index_copy_(0, rows.windows[0].long(), places)


def equals(scores: Tensor, places: Tensor, count: int) -> None:
    """The kernel's ranking is the reference's, to the last tie."""
    results: list[Any] = []
    for run in (rank.rank, rank.rank_reference):
        ranked = torch.full_like(scores, -7, dtype=torch.int32)
        table = torch.full((*scores.shape[:2], places[0].numel()), -7, dtype=torch.int32, device=scores.device)
        run(scores, places, count, ranked, table)
        results.append((ranked, table))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_equal_scores_rank_by_number_and_nan_breaks_nothing(make_rows: MakeRows, device: torch.device) -> None:
    places = torch.stack([in_order(make_rows, (36, 40), 2, shift) for shift in (0, 1)])
    scores = torch.randint(0, 3, (2, 2, 360), device=device).float()
    equals(scores, places, 36 * 40)
    equals(torch.zeros_like(scores), places, 36 * 40)
    scores[0, 1, 5] = math.nan
    scores[1, 0, :] = math.nan
    ranked = torch.full_like(scores, -7, dtype=torch.int32)
    table = torch.full((2, 2, 36 * 40), -7, dtype=torch.int32, device=device)
    rank.rank(scores, places, 36 * 40, ranked, table)
    assert torch.equal(ranked.sort(-1).values, torch.arange(360, device=device).int().expand(2, 2, -1))
    assert int(table.min()) >= -1
