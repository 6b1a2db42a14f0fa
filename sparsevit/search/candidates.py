"""The configurations worth an evaluation: within the bounds by the latency model, one for each set of kept windows.

Of configurations that keep the same windows the one with the lowest ratios stands for all: it prunes nothing that it
need not name, and a layer that keeps everything skips the ranking as well. Where a study narrows what layers may take,
it is the lowest among what is left.
Legend: N candidates, L layers, R ratios of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.search.restriction import Restriction
from sparsevit.search.results import Bounds
from sparsevit.sparsity import Sparsity, SparsitySpace, product_levels

Levels = NDArray[np.intp]
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
"""Latencies in ms, shape `(N,)`, of levels of shape `(N, L)`."""


MOST = 200_000_000
"""Configurations that a space may have: going through them takes a minute or two, and 4 GB."""

CLOSE = 1e-9
"""Sums of ratios that differ by less are equal."""

CHUNK = 1 << 18
"""Configurations whose levels are spelled out at a time; a space may have millions."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """All feasible configurations, fastest first.

    A configuration is kept as one number, its place among the distinct ones of the space; levels are spelled out where
    they are needed.

    Attributes:
        space: the space they come from.
        ms: shape `(N,)`; predicted latencies, increasing.
        reachable: lowest and highest predicted latency of all that may be searched, ms.
        distinct: configurations that differ in the windows they keep.
        choices: for each layer the standing-in levels that it may take, increasing.
    """

    space: SparsitySpace
    ms: NDArray[np.float64]
    reachable: tuple[float, float]
    distinct: int
    choices: tuple[NDArray[np.intp], ...]
    _canonical: NDArray[np.intp]  # (L, R): which level stands in for a level
    _stages: tuple[NDArray[np.uint8], ...]  # the choices of each stage, one for each set of kept windows, as levels
    _codes: tuple[NDArray[np.int64], ...]  # of those choices' standing-in levels, increasing
    _numbers: NDArray[np.int32]  # (N,): of each candidate
    _rows: NDArray[np.int32]  # (distinct,): the row of each number, -1 where it is infeasible

    def __len__(self) -> int:
        return len(self.ms)

    @property
    def levels(self) -> NDArray[np.uint8]:
        """The levels of all, shape `(N, L)`, sorted inside stages."""
        return self.levels_of(np.arange(len(self)))

    def levels_of(self, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The levels of some, shape `(M,)` to `(M, L)`, sorted inside stages."""
        return product_levels(self._stages, self._numbers[rows])

    def canonical(self, levels: NDArray[np.integer] | Sequence[Sequence[int]]) -> Levels:
        """The levels that stand in for `levels` of shape `(..., L)`, sorted inside every stage.

        They name the kept windows; where layers are restricted, a candidate itself may have other levels.
        """
        table = _sort_stages(np.asarray(levels, np.intp), self.space.layers)
        return self._canonical[np.arange(table.shape[-1]), table]

    def rows(self, levels: NDArray[np.integer] | Sequence[Sequence[int]]) -> NDArray[np.intp]:
        """Which candidate each of `levels`, shape `(M, L)`, is; -1 where it is infeasible. Shape `(M,)`."""
        standing, end = self.canonical(levels), 0
        numbers, found = np.zeros(len(standing), np.int64), np.ones(len(standing), bool)
        base = len(self.space.grid)
        for count, known in zip(self.space.layers, self._codes, strict=True):
            start, end = end, end + count
            codes = _codes(standing[:, start:end], base)
            place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            found &= known[place] == codes
            numbers = numbers * len(known) + place
        return np.where(found, self._rows[numbers], -1).astype(np.intp)

    def row(self, sparsity: Sparsity) -> int:
        """Which candidate a sparsity is; -1 if it is infeasible."""
        return int(self.rows([self.space.encode(sparsity)])[0])

    def sparsity(self, row: int) -> Sparsity:
        return self.space.decode(self.levels_of(np.array([row]))[0].tolist())

    def nearest(self, levels: NDArray[np.integer], rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of `rows` whose ratios differ least from `levels`, shape `(L,)`, summed over layers; all if equal."""
        grid = np.array([float(value) for value in self.space.grid])
        wanted = grid[self.canonical(levels[None])[0]]
        least, found = np.inf, rows[:0]
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            distances = np.abs(grid[self.levels_of(part)] - wanted).sum(axis=1)
            close = part[distances <= min(least, distances.min()) + CLOSE]
            found = close if distances.min() < least - CLOSE else np.concatenate([found, close])
            least = min(least, float(distances.min()))
        return found


def find_candidates(
    space: SparsitySpace,
    windows: Sequence[int],
    predict: Predict,
    bounds: Bounds,
    restriction: Restriction | None = None,
) -> Candidates:
    """Go through a space and keep what meets the bounds.

    Takes about 20 bytes for each distinct configuration, so Swin-B's 17.7 million fit into half a gigabyte.

    Args:
        space: every configuration of it is considered.
        windows: windows of each stage at the target's image size.
        predict: the latency model.
        bounds: both included.
        restriction: what layers may take; the whole grid by default.

    Raises:
        UserError: if the space has too many configurations to go through.
    """
    kept = space.kept_table(windows)
    canonical = np.argmax(kept[:, :, None] == kept[:, None, :], axis=2)
    restriction = restriction or Restriction.of(space, {})
    _check_countable(restriction)
    ends, base = np.cumsum(space.layers), len(space.grid)
    pairs = [
        _distinct(levels, canonical[end - levels.shape[1] : end], base)
        for levels, end in zip(restriction.stage_levels(), ends, strict=True)
    ]
    stages, codes = tuple(levels for levels, _ in pairs), tuple(code for _, code in pairs)
    choices = tuple(
        np.unique(row[column])
        for row, column in zip(canonical, (column for levels in stages for column in levels.T), strict=True)
    )
    distinct = math.prod(map(len, stages))
    numbers, latencies, extremes = [], [], []
    for start in range(0, distinct, CHUNK):
        chunk = np.arange(start, min(start + CHUNK, distinct), dtype=np.int32)
        ms = np.asarray(predict(product_levels(stages, chunk)), np.float64)
        feasible = (ms >= bounds.min_ms) & (ms <= bounds.max_ms)
        numbers.append(chunk[feasible])
        latencies.append(ms[feasible])
        extremes += [float(ms.min()), float(ms.max())]
    found, all_ms = np.concatenate(numbers), np.concatenate(latencies)
    order = np.argsort(all_ms, kind="stable")
    found = found[order]
    rows = np.full(distinct, -1, np.int32)
    rows[found] = np.arange(len(found), dtype=np.int32)
    return Candidates(
        space=space,
        ms=all_ms[order],
        reachable=(min(extremes), max(extremes)),
        distinct=distinct,
        choices=choices,
        _canonical=canonical,
        _stages=stages,
        _codes=codes,
        _numbers=found,
        _rows=rows,
    )


def require(candidates: Candidates, bounds: Bounds, target: str) -> Candidates:
    """`candidates`, if there are any.

    Raises:
        UserError: if no configuration meets the bounds; states the reachable range.
    """
    if len(candidates):
        return candidates
    low, high = candidates.reachable
    wanted = f"{bounds.min_ms:.4g} to {bounds.max_ms:.4g} ms" if bounds.min_ms else f"at most {bounds.max_ms:.4g} ms"
    raise UserError(
        f"no configuration takes {wanted} on {target}: within reach are {low:.4g} to {high:.4g} ms "
        "(set latency.max and latency.min accordingly)"
    )


def _sort_stages(levels: Levels, layers: Sequence[int]) -> Levels:
    """Sorted inside every stage; works on a copy."""
    parts = np.split(levels, np.cumsum(layers)[:-1], axis=-1)
    return np.concatenate([np.sort(part, axis=-1) for part in parts], axis=-1)


def _distinct(
    levels: NDArray[np.uint8], canonical: NDArray[np.intp], base: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first choice of a stage for each set of kept windows, shape `(choices, layers)`, and a code of that set."""
    codes, firsts = np.unique(_codes(canonical[np.arange(levels.shape[1]), levels], base), return_index=True)
    return levels[firsts], codes


def _codes(levels: NDArray[np.integer], base: int) -> NDArray[np.int64]:
    """One integer for each row of levels, shape `(N, L)` to `(N,)`; ordered as the rows are."""
    codes = np.zeros(len(levels), np.int64)
    for column in levels.T:
        codes = codes * base + column
    return codes


def _check_countable(restriction: Restriction) -> None:
    """Raises: UserError: if a space has more configurations than are gone through."""
    space = restriction.space
    count = math.prod(restriction.stage_counts)
    if count > MOST:
        raise UserError(
            f"{len(space.grid)} ratios in {sum(space.layers)} layers make {count:,} configurations, "
            f"more than the {MOST:,} that are gone through: name fewer ratios, or fix layers with space.layers"
        )
