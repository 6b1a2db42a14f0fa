"""The statistics of the latency model: which configurations to measure, and one number per layer and ratio from them.

Inside a stage, latencies telescope over its sorted ratios: with three layers, f(a,b,c) = f(a,a,a) + f(0,b,b) - f(0,a,a)
+ f(0,0,c) - f(0,0,b). Sorted by ratio, that is one term per layer: c_j(r), the tail of ratio r from layer j on, less
the tail from layer j + 1. So layers add up as stages do, and least squares finds the terms from any measurements.

L layers, G grid values, N measurements.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from sparsevit.sparsity import Sparsity, SparsitySpace

Array = NDArray[np.float64]

RANK = 1e-10  # share of the largest singular value below which one counts as 0
TRIES = 20
PENALTIES = np.geomspace(1e-9, 1e6, 61)


def tails(space: SparsitySpace, windows: Sequence[int]) -> list[Sparsity]:
    """The cells of the model: each layer with all later ones of its stage at each ratio, everything else dense.

    Of ratios that keep the same windows, only the smallest is there.
    """
    kept = space.kept_table(windows)
    found = []
    for layer, (stage, within) in enumerate(_positions(space)):
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


def fit_table(
    space: SparsitySpace, windows: Sequence[int], sparsities: Sequence[Sparsity], ms: Array, samples: Array
) -> tuple[float, Array]:
    """The dense latency and the change that each layer's ratio makes to it, ms, shape `(L, G)`.

    Every layer starts from a straight line, cost per kept window, and every stage from one cost of ranking and
    gathering, paid if anything in it is pruned. Each cell may leave that line as far as the measurements carry it:
    generalised cross-validation says how far. At last, more pruning in a layer is made never slower than less, save for
    the step from none.

    Args:
        sparsities: what was measured, N of them; they need not lie in the space.
        ms: their latencies, shape `(N,)`. Errors are taken to be relative to them.
        samples: how many samples each is the median of, shape `(N,)`.
    """
    kept = space.kept_table(windows)
    positions = _positions(space)
    totals = np.array([windows[stage] for stage, _ in positions])
    measured = np.array([sparsity.kept(windows) for sparsity in sparsities])
    cells = [(layer, int(k)) for layer in range(len(kept)) for k in np.unique(kept[layer]) if k < totals[layer]]
    last = [layer for layer, (stage, within) in enumerate(positions) if within == space.layers[stage] - 1]

    lines = np.column_stack([np.ones(len(measured)), 1 - measured / totals, measured[:, last] < totals[last]])
    in_cell = np.zeros((len(measured), len(cells)))
    for column, (layer, count) in enumerate(cells):
        in_cell[:, column] = measured[:, layer] == count
    weight = np.sqrt(samples) / ms
    line, deviation = _ridge(lines * weight[:, None], in_cell * weight[:, None], ms * weight)
    pruned = kept < totals[:, None]
    slopes, overheads = line[1 : 1 + len(kept)], line[1 + len(kept) :]
    table = slopes[:, None] * (1 - kept / totals[:, None])
    table[last] += overheads[:, None] * pruned[last]
    for (layer, count), change in zip(cells, deviation, strict=True):
        table[layer, kept[layer] == count] += change
    for row, some in zip(table, pruned, strict=True):
        row[some] = falling(row[some])
    return float(line[0]), table


def falling(values: Array) -> Array:
    """The non-increasing sequence nearest to `values` in least squares: pool adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        pools.append((value, 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (b, n), (a, m) = pools.pop(), pools.pop()
            pools.append(((a * m + b * n) / (m + n), m + n))
    return np.array([mean for mean, count in pools for _ in range(count)])


def kendall(first: Array, second: Array) -> float:
    """Kendall's tau-b: 1 if both order alike, -1 if the other way round; NaN if one of them is all ties."""
    rows, columns = np.triu_indices(len(first), 1)
    a, b = np.sign(first[rows] - first[columns]), np.sign(second[rows] - second[columns])
    norm = np.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b / norm) if norm else float("nan")


def _ridge(free: Array, bound: Array, y: Array) -> tuple[Array, Array]:
    """Coefficients of free columns, and of columns drawn towards 0 as far as generalised cross-validation says."""
    u, s, _ = np.linalg.svd(free, full_matrices=False)
    basis = u[:, s > s[0] * RANK]

    def aside(x: Array) -> Array:
        return np.asarray(x - basis @ (basis.T @ x))

    u, s, v = np.linalg.svd(aside(bound), full_matrices=False)
    told = s > RANK * np.linalg.norm(bound)  # what the free columns do not explain already
    u, s, v = u[:, told], s[told], v[told]
    rest, along = aside(y), u.T @ aside(y)
    outside = float(rest @ rest - along @ along)

    def score(penalty: float) -> float:
        shrunk = penalty / (s**2 + penalty)
        freedom = len(y) - basis.shape[1] - float(np.sum(1 - shrunk))
        return (max(outside, 0.0) + float(np.sum((shrunk * along) ** 2))) / float(max(freedom, 1e-9)) ** 2

    penalties = PENALTIES * np.max(s, initial=0.0) ** 2
    spare = len(y) - basis.shape[1] - len(s)
    penalty = min(penalties, key=score) if spare > 0 else penalties[0]  # without spare measurements, nothing to go by
    deviation = v.T @ (s / (s**2 + penalty) * along)
    return np.linalg.lstsq(free, y - bound @ deviation, rcond=None)[0], deviation


def _positions(space: SparsitySpace) -> list[tuple[int, int]]:
    """Stage, and place in it, of every layer."""
    return [(stage, within) for stage, count in enumerate(space.layers) for within in range(count)]


def _distinct(kept: NDArray[np.int64], windows: int) -> list[int]:
    """Levels that keep fewer windows than all and than every level before."""
    return [level for level, count in enumerate(kept) if count < windows and count not in kept[:level]]
