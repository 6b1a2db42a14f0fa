"""The statistics of the latency model: from measurements to one number per layer and ratio.

Inside a stage, latencies telescope over its sorted ratios: with three layers, f(a,b,c) = f(a,a,a) + f(0,b,b) - f(0,a,a)
+ f(0,0,c) - f(0,0,b). Sorted by ratio, that is one term per layer: c_j(r), the tail of ratio r from layer j on, less
the tail from layer j + 1; ranking, which a stage pays once, falls to its last layer, as that is pruned if any is. So
layers add up as stages do, whatever their number, and measurements of any configurations tell of the terms.

L layers, G grid values, S stages, N measurements, P coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.latency.design import positions
from sparsevit.sparsity import Sparsity, SparsitySpace

Array = NDArray[np.float64]

VARIANCES = (0.0, *np.geomspace(1e-3, 1e9, 19))
"""Of a group's coefficients, in units where 1 shows in the measurements as much as their noise does."""

OUTLYING = 2.5
"""Robust standard deviations from which on a measurement is believed the less, the further off it is."""

REWEIGHTINGS = 3
SWEEPS = 3
EVIDENCE = 6.0
"""What -2 log likelihood must fall by before repeats count: about one chance in a hundred that it is luck."""

SURE = 3.0
"""Standard deviations by which more pruning has to be slower for that to be believed."""

MAX_SAMPLES = 4.0
"""A configuration counts as measured at most so many times as often as the median one: models err, not noise alone."""


Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Terms:
    """What latencies are the sum of, ms.

    Attributes:
        dense_ms: the dense latency.
        cells: what each grid value in each layer adds to it (mostly below 0), shape `(L, G)`.
        repeats: what a layer adds that keeps as many windows as the layer before it, both pruned, shape `(S, G)`.
    """

    dense_ms: float
    cells: Rows
    repeats: Rows

    def of(self, space: SparsitySpace, levels: NDArray[np.integer[Any]]) -> Array:
        """The sums, ms, shape `(N,)`, for levels of shape `(N, L)`, sorted inside every stage."""
        found = np.full(len(levels), self.dense_ms)
        for layer, (stage, within) in enumerate(positions(space)):
            now = levels[:, layer]
            found += np.array(self.cells[layer])[now]
            if within and any(self.repeats[stage]):
                found += np.where(now == levels[:, layer - 1], np.array(self.repeats[stage])[now], 0.0)
        return found

    def of_stages(self, space: SparsitySpace) -> list[Array]:
        """What every choice of each stage adds to the dense latency, ms, in the order of `space.stage_levels`."""
        found, start = [], 0
        for stage, levels in enumerate(space.stage_levels):
            sums = np.zeros(len(levels))
            for within in range(levels.shape[1]):
                sums += np.array(self.cells[start + within])[levels[:, within]]
                if within:
                    same = levels[:, within] == levels[:, within - 1]
                    sums += np.where(same, np.array(self.repeats[stage])[levels[:, within]], 0.0)
            found.append(sums)
            start += levels.shape[1]
        return found


@dataclass(frozen=True)
class _Group:
    """Coefficients of one kind, drawn from one distribution: columns `(N, C)`, and what each adds to the terms."""

    columns: Array
    cells: Array  # (C, L, G)
    repeats: Array  # (C, S, G)
    free: bool = False


def fit_terms(
    space: SparsitySpace,
    windows: Sequence[int],
    sparsities: Sequence[Sparsity],
    ms: Array,
    samples: Array,
    *,
    launches: bool = False,
) -> Terms:
    """The terms that explain measured latencies best.

    Every stage starts from a straight line, a cost per kept window. On top come, each as large as the measurements
    say (restricted maximum likelihood): costs of ranking and of gathering; steps that the layers of a stage share, as
    they run the same kernels on the same shapes; what is a layer's own; and, if there is evidence for it, what
    layers save that keep the windows of the layer before. So a stage of nine layers needs little more measuring than
    one of three, and noise is smoothed as far as it is noise. At last, more pruning in a layer is made never slower
    than less, save for the step from none, and for steps that the measurements leave no doubt about.

    Args:
        sparsities: what was measured, N of them; they need not lie in the space.
        ms: their latencies, shape `(N,)`. Errors are taken to be relative to them.
        samples: how many samples each is the median of, shape `(N,)`.
        launches: whether latencies depend on which layers are pruned alone, not on how much, as the work of a host does
            that launches kernels.
    """
    measured = np.array([sparsity.kept(windows) for sparsity in sparsities])
    weight = np.sqrt(np.minimum(samples, MAX_SAMPLES * np.median(samples))) / ms
    groups = _groups(space, windows, measured)
    plain = [groups[0], groups[2]] if launches else groups[:-1]
    believed = np.ones(len(ms))
    for _ in range(REWEIGHTINGS):
        believed = _believed(_Fit(plain, ms, weight * believed).residuals / believed)
    weight *= believed
    additive = _Fit(plain, ms, weight)
    fit = additive
    if not launches and groups[-1].columns.any():
        repeating = _Fit(groups, ms, weight)
        fit = repeating if additive.score - repeating.score > EVIDENCE else additive
    dense_ms = float(fit.coefficients[0])
    cells = np.tensordot(fit.coefficients, fit.cells, 1)
    repeats = np.tensordot(fit.coefficients, fit.repeats, 1)
    kept = space.kept_table(windows)
    for layer, row in enumerate(cells):
        counts = np.unique(kept[layer])[::-1]  # falling, as pruning grows
        some = [int(np.argmax(kept[layer] == count)) for count in counts if count < windows[positions(space)[layer][0]]]
        steps = np.diff(fit.cells[:, layer, some], axis=1)  # (P, steps)
        sure = SURE * np.sqrt(np.maximum(np.einsum("ps,pq,qs->s", steps, fit.covariance, steps), 0))
        row[some] = falling(row[some], np.diff(row[some]) > np.maximum(sure, 1e-9 * dense_ms))
        for level in some:
            row[kept[layer] == kept[layer, level]] = row[level]
    return Terms(dense_ms, _rows(cells), _rows(repeats))


def falling(values: Array, rises: NDArray[np.bool_] | None = None) -> Array:
    """The non-increasing sequence nearest to `values` in least squares: pool adjacent violators.

    Args:
        rises: where (between neighbours) it may rise nevertheless; nowhere by default.
    """
    pools: list[tuple[float, int, bool]] = []
    for place, value in enumerate(values.tolist()):
        starts = place == 0 or (rises is not None and bool(rises[place - 1]))
        pools.append((value, 1, starts))
        while not pools[-1][2] and pools[-1][0] > pools[-2][0]:
            (b, n, _), (a, m, first) = pools.pop(), pools.pop()
            pools.append(((a * m + b * n) / (m + n), m + n, first))
    return np.array([mean for mean, count, _ in pools for _ in range(count)])


def kendall(first: Array, second: Array) -> float:
    """Kendall's tau-b: 1 if both order alike, -1 if the other way round; NaN if one of them is all ties."""
    rows, columns = np.triu_indices(len(first), 1)
    a, b = np.sign(first[rows] - first[columns]), np.sign(second[rows] - second[columns])
    norm = np.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b / norm) if norm else float("nan")


def _believed(residuals: Array) -> Array:
    """How far to believe each measurement: less if it is an outlier, as others' work makes them (Huber's weights)."""
    scale = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    if scale == 0:
        return np.ones(len(residuals))
    return np.asarray(np.sqrt(np.minimum(1, OUTLYING * scale / np.maximum(np.abs(residuals), 1e-300))), np.float64)


def _rows(table: Array) -> Rows:
    return tuple(tuple(row) for row in table.tolist())


def _groups(space: SparsitySpace, windows: Sequence[int], measured: NDArray[np.int64]) -> list[_Group]:
    """The constant, slopes, overheads, slopes of layers, shared steps, steps of layers, repeats."""
    place, kept = positions(space), space.kept_table(windows)
    totals = np.array([windows[stage] for stage, _ in place])
    stages, layers, grid = len(space.layers), len(place), len(space.grid)
    members = [[layer for layer, (stage, _) in enumerate(place) if stage == number] for number in range(stages)]
    several = [number for number in range(stages) if len(members[number]) > 1]
    counts = [[int(k) for k in np.unique(kept[of[0]]) if k < windows[s]] for s, of in enumerate(members)]

    share, shares = 1 - measured / totals, 1 - kept / totals[:, None]
    pruned, prunes = measured < totals, kept < totals[:, None]

    def group(entries: Sequence[tuple[Array, Array]], *, free: bool = False) -> _Group:
        """From pairs of columns `(N,)` and cells `(L, G)`; such as are all 0 are left out."""
        entries = [one for one in entries if one[0].any()]
        columns = np.array([column for column, _ in entries], np.float64).reshape(len(entries), len(measured)).T
        cells = np.array([cell for _, cell in entries], np.float64).reshape(len(entries), layers, grid)
        return _Group(columns, cells, np.zeros((len(entries), stages, grid)), free)

    def only(table: NDArray[Any], of: Sequence[int]) -> Array:
        """The rows of `of` in a table of all layers, the others 0."""
        mask = np.zeros((layers, 1))
        mask[list(of)] = 1
        return np.asarray(table * mask, np.float64)

    constant = group([(np.ones(len(measured)), np.zeros((layers, grid)))], free=True)
    slopes = group([(share[:, of].sum(axis=1), only(shares, of)) for of in members], free=True)
    overheads = group(
        [(pruned[:, of].sum(axis=1), only(prunes, of)) for of in members]
        + [(pruned[:, members[s][-1]], only(prunes, members[s][-1:])) for s in several]
        + [(pruned[:, layer], only(prunes, [layer])) for s in several for layer in members[s][:-1]]
    )
    own_slopes = group([(share[:, layer], only(shares, [layer])) for s in several for layer in members[s]])
    steps = group(
        [
            ((measured[:, of] == count).sum(axis=1), only(kept == count, of))
            for s, of in enumerate(members)
            for count in counts[s]
        ]
    )
    own_steps = group(
        [
            (measured[:, layer] == count, only(kept == count, [layer]))
            for s in several
            for layer in members[s]
            for count in counts[s]
        ]
    )
    return [
        constant,
        slopes,
        overheads,
        own_slopes,
        steps,
        own_steps,
        _repeats(several, members, counts, kept, measured),
    ]


def _repeats(
    several: Sequence[int],
    members: Sequence[Sequence[int]],
    counts: Sequence[Sequence[int]],
    kept: NDArray[np.int64],
    measured: NDArray[np.int64],
) -> _Group:
    """One coefficient per stage for any repeat, and one per number of windows repeated."""
    stages, (layers, grid) = len(members), kept.shape
    columns, tables = [], []
    for stage in several:
        of = list(members[stage])
        for which in (counts[stage], *([count] for count in counts[stage])):
            now, before = measured[:, of[1:]], measured[:, of[:-1]]
            columns.append(((now == before) & np.isin(now, which)).sum(axis=1))
            tables.append(np.zeros((stages, grid)))
            tables[-1][stage] = np.isin(kept[of[0]], which)
    size = len(columns)
    return _Group(
        np.array(columns, np.float64).reshape(size, len(measured)).T,
        np.zeros((size, layers, grid)),
        np.array(tables, np.float64).reshape(size, stages, grid),
    )


class _Fit:
    """A linear model whose groups of coefficients have variances of their own, by restricted maximum likelihood.

    Attributes:
        coefficients: shape `(P,)`; the constant is the first.
        residuals: of the weighted latencies, shape `(N,)`.
        covariance: of the coefficients, shape `(P, P)`.
        cells: what each coefficient adds to the cells, shape `(P, L, G)`; `repeats` likewise, `(P, S, G)`.
        score: -2 log restricted likelihood, up to a constant.
    """

    def __init__(self, groups: Sequence[_Group], ms: Array, weight: Array) -> None:
        free = [one for one in groups if one.free]
        bound = [one for one in groups if not one.free and one.columns.shape[1]]
        # Whitened, and in units of the mean, so that variances mean the same for every device.
        self._y = ms * weight
        self._free = np.hstack([one.columns for one in free]) * weight[:, None]
        self._bound = [one.columns * weight[:, None] * float(ms.mean()) for one in bound]
        self._kernels = []
        for columns in self._bound:
            kernel = columns @ columns.T
            self._kernels.append(kernel / max(float(np.trace(kernel)) / len(ms), 1e-300))
        variances = self._likeliest()
        self.score = self._score(variances)
        used = [
            (one, columns, variance * len(ms) / float(np.sum(columns**2)))
            for one, columns, variance in zip(bound, self._bound, variances, strict=True)
            if variance > 0
        ]
        x = np.hstack([self._free, *(columns for _, columns, _ in used)])
        precision = [np.zeros(self._free.shape[1]), *(np.full(c.shape[1], 1 / v) for _, c, v in used)]
        normal = x.T @ x + np.diag(np.concatenate(precision))
        inverse = np.linalg.pinv(normal, rcond=1e-14, hermitian=True)
        rest = len(ms) - self._free.shape[1]
        scale = np.concatenate([np.ones(self._free.shape[1]), *(np.full(c.shape[1], ms.mean()) for _, c, _ in used)])
        whitened = inverse @ (x.T @ self._y)
        self.residuals = self._y - x @ whitened
        self.coefficients = whitened * scale
        sigma2 = max(self._quadratic(variances), 0.0) / max(rest, 1)
        self.covariance = inverse * np.outer(scale, scale) * sigma2
        chosen = [*free, *(one for one, _, _ in used)]
        self.cells = np.concatenate([one.cells for one in chosen])
        self.repeats = np.concatenate([one.repeats for one in chosen])

    def _likeliest(self) -> list[float]:
        """The variance of each group, one after the other, until none changes."""
        found = [1.0] * len(self._kernels)
        for _ in range(SWEEPS):
            before = list(found)
            for place in range(len(found)):
                trials = [[*found[:place], value, *found[place + 1 :]] for value in VARIANCES]
                found = min(trials, key=self._score)
            if found == before:
                break
        return found

    def _parts(self, variances: Sequence[float]) -> tuple[float, float, float]:
        """log|V|, log|F'V^-1 F|, and the generalised residual sum of squares, for y ~ N(F b, V)."""
        v = np.eye(len(self._y))
        for kernel, variance in zip(self._kernels, variances, strict=True):
            if variance:
                v += variance * kernel
        lower = np.linalg.cholesky(v)
        f, y = np.split(np.linalg.solve(lower, np.column_stack([self._free, self._y])), [-1], axis=1)
        u, s, _ = np.linalg.svd(f, full_matrices=False)
        told = s > 1e-10 * s[0]
        rest = y - u[:, told] @ (u[:, told].T @ y)
        return 2 * float(np.log(np.diag(lower)).sum()), 2 * float(np.log(s[told]).sum()), float(np.sum(rest**2))

    def _quadratic(self, variances: Sequence[float]) -> float:
        return self._parts(variances)[2]

    def _score(self, variances: Sequence[float]) -> float:
        spread, known, rest = self._parts(variances)
        freedom = max(len(self._y) - self._free.shape[1], 1)
        floor = 1e-18 * float(self._y @ self._y)  # latencies without any noise, of a made-up device
        return float(spread + known + freedom * np.log(max(rest, floor)))
