"""The configurations worth an evaluation: within the bounds by the latency model, one for each set of kept windows.

Of configurations that keep the same windows the one with the lowest ratios stands for all: it prunes nothing that it
need not name, and a layer that keeps everything skips the ranking as well.
Legend: N candidates, L layers, R ratios of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.search.results import Bounds
from sparsevit.sparsity import Sparsity, SparsitySpace

Levels = NDArray[np.intp]
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
"""Latencies in ms, shape `(N,)`, of levels of shape `(N, L)`."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """All feasible configurations, fastest first.

    Attributes:
        space: the space they come from.
        levels: shape `(N, L)`; the standing-in levels of each, sorted inside stages.
        ms: shape `(N,)`; predicted latencies, increasing.
        reachable: lowest and highest predicted latency of the whole space, ms.
        distinct: configurations of the space that differ in the windows they keep.
        choices: for each layer the levels that stand in for others, increasing.
    """

    space: SparsitySpace
    levels: NDArray[np.uint8]
    ms: NDArray[np.float64]
    reachable: tuple[float, float]
    distinct: int
    choices: tuple[NDArray[np.intp], ...]
    _canonical: NDArray[np.intp]  # (L, R): which level stands in for a level
    _codes: NDArray[np.int64]  # (N,), sorted
    _order: NDArray[np.intp]  # (N,): the row of each code

    def __len__(self) -> int:
        return len(self.ms)

    def canonical(self, levels: NDArray[np.integer] | Sequence[Sequence[int]]) -> Levels:
        """The levels that stand in for `levels` of shape `(..., L)`, sorted inside every stage."""
        table = _sort_stages(np.asarray(levels, np.intp), self.space.layers)
        return self._canonical[np.arange(table.shape[-1]), table]

    def rows(self, levels: NDArray[np.integer] | Sequence[Sequence[int]]) -> NDArray[np.intp]:
        """Which candidate each of `levels`, shape `(M, L)`, is; -1 where it is infeasible. Shape `(M,)`."""
        codes = _codes(self.canonical(levels), len(self.space.grid))
        if not len(self):
            return np.full(len(codes), -1)
        place = np.minimum(np.searchsorted(self._codes, codes), len(self) - 1)
        return np.where(self._codes[place] == codes, self._order[place], -1)

    def row(self, sparsity: Sparsity) -> int:
        """Which candidate a sparsity is; -1 if it is infeasible."""
        return int(self.rows([self.space.encode(sparsity)])[0])

    def sparsity(self, row: int) -> Sparsity:
        return self.space.decode(self.levels[row].tolist())


def find_candidates(space: SparsitySpace, windows: Sequence[int], predict: Predict, bounds: Bounds) -> Candidates:
    """Enumerate a space and keep what meets the bounds.

    Args:
        space: every configuration of it is considered.
        windows: windows of each stage at the target's image size.
        predict: the latency model.
        bounds: both included.
    """
    kept = space.kept_table(windows)
    canonical = np.argmax(kept[:, :, None] == kept[:, None, :], axis=2)
    levels = space.all_levels()
    levels = levels[(canonical[np.arange(levels.shape[1]), levels] == levels).all(axis=1)]
    ms = np.asarray(predict(levels), np.float64)
    reachable, distinct = (float(ms.min()), float(ms.max())), len(ms)
    feasible = (ms >= bounds.min_ms) & (ms <= bounds.max_ms)
    levels, ms = levels[feasible], ms[feasible]
    order = np.argsort(ms, kind="stable")
    levels, ms = levels[order], ms[order]
    codes = _codes(levels, len(space.grid))
    by_code = np.argsort(codes)
    return Candidates(
        space=space,
        levels=levels,
        ms=ms,
        reachable=reachable,
        distinct=distinct,
        choices=tuple(np.unique(row) for row in canonical),
        _canonical=canonical,
        _codes=codes[by_code],
        _order=by_code,
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


def _codes(levels: NDArray[np.integer], base: int) -> NDArray[np.int64]:
    """One integer for each row of levels, shape `(N, L)` to `(N,)`."""
    if base ** levels.shape[-1] > np.iinfo(np.int64).max:
        raise UserError(f"{base} ratios in {levels.shape[-1]} layers are too many to enumerate: name fewer ratios")
    codes = np.zeros(len(levels), np.int64)
    for column in levels.T:
        codes = codes * base + column
    return codes
