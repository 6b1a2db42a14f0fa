"""Which configurations to measure for a latency model, and which to hold out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from sparsevit.sparsity import Sparsity, SparsitySpace

TRIES = 20
POOL = 12
"""Random configurations to choose each designed one from."""

PRIOR = 0.05
"""What a design knows of a cell before anything is measured, in measurements."""


def tails(space: SparsitySpace, windows: Sequence[int]) -> list[Sparsity]:
    """The cells of the model: each layer with all later ones of its stage at each ratio, everything else dense.

    Of ratios that keep the same windows, only the smallest is there.
    """
    kept = space.kept_table(windows)
    found = []
    for layer, (stage, within) in enumerate(positions(space)):
        for level in _distinct(kept[layer], windows[stage]):
            stages = [[Decimal(0)] * count for count in space.layers]
            stages[stage][within:] = [space.grid[level]] * (space.layers[stage] - within)
            found.append(Sparsity(tuple(map(tuple, stages))))
    return found


def draw(
    space: SparsitySpace, windows: Sequence[int], count: int, seed: int, besides: Sequence[Sparsity] = ()
) -> list[Sparsity]:
    """Up to `count` random sparsities that keep other windows than each other and than those of `besides`."""
    rng = random.Random(seed)
    seen = {sparsity.kept(windows) for sparsity in besides}
    found: list[Sparsity] = []
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        sparsity = space.sample(rng)
        if sparsity.kept(windows) not in seen:
            seen.add(sparsity.kept(windows))
            found.append(sparsity)
    return found


def designed(
    space: SparsitySpace, windows: Sequence[int], count: int, seed: int, besides: Sequence[Sparsity] = ()
) -> list[Sparsity]:
    """Up to `count` sparsities that together tell most of every layer and ratio, from a random pool and the tails.

    Each measurement of a random configuration tells of one cell in every layer at once, where a tail tells of one
    alone, as in weighing designs. Greedy D-optimal: the next is the one whose latency is least known, given those
    before it.
    """
    pool = [*tails(space, windows), *draw(space, windows, POOL * count, seed, besides)]
    taken = {sparsity.kept(windows) for sparsity in [space.dense, *besides]}  # the dense one is measured in any case
    pool = list({one.kept(windows): one for one in reversed(pool) if one.kept(windows) not in taken}.values())
    if not pool:
        return []
    features = _indicators(space, windows, [space.dense, *pool])
    inverse = np.eye(features.shape[1]) / PRIOR
    spread = (features**2).sum(axis=1) / PRIOR
    chosen: list[Sparsity] = []
    picked = 0  # the dense one
    for _ in range(min(count, len(pool)) + 1):
        along = inverse @ features[picked]
        gain = 1 + spread[picked]
        inverse -= np.outer(along, along) / gain
        spread -= (features @ along) ** 2 / gain
        if picked:
            chosen.append(pool[picked - 1])
            spread[picked] = -np.inf
        else:
            spread[0] = -np.inf
        picked = int(np.argmax(spread))
    return chosen


def positions(space: SparsitySpace) -> list[tuple[int, int]]:
    """Stage, and place in it, of every layer."""
    return [(stage, within) for stage, count in enumerate(space.layers) for within in range(count)]


def _indicators(space: SparsitySpace, windows: Sequence[int], sparsities: Sequence[Sparsity]) -> NDArray[np.float64]:
    """A column for the constant, and one for every layer and number of windows that it may keep when pruned."""
    measured = np.array([sparsity.kept(windows) for sparsity in sparsities])
    columns = [np.ones(len(measured), bool)]
    for layer, row in enumerate(space.kept_table(windows)):
        total = windows[positions(space)[layer][0]]
        columns += [measured[:, layer] == count for count in np.unique(row) if count < total]
    return np.column_stack(columns).astype(np.float64)


def _distinct(kept: NDArray[np.int64], windows: int) -> list[int]:
    """Levels that keep fewer windows than all and than every level before."""
    return [level for level, count in enumerate(kept) if count < windows and count not in kept[:level]]
