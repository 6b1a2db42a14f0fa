"""The terms of a latency model for a device that may wait for its host: the slower of the two counts.

Under eager execution the host launches kernels while the GPU computes. Its time depends on how many layers are pruned,
not on how much; the GPU's falls with every window. Each is a sum over layers, and the latency is the larger sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.latency.additive import Array, Terms, fit_terms
from sparsevit.sparsity import Sparsity, SparsitySpace

CLOSE = 0.003
"""Mean residual (a fraction) at which one sum explains all there is to explain."""

BETTER = 0.85
"""What cross-validation's error has to fall to, as a fraction, for two sums to be believed."""

FOLDS = 4
PASSES = 5
LEAST = 8
"""Configurations that each of two sums has to be fitted on."""

STARTS = (0.25, 0.5, 0.75)


def fit_bottlenecks(
    space: SparsitySpace, windows: Sequence[int], sparsities: Sequence[Sparsity], ms: Array, samples: Array
) -> tuple[Terms, ...]:
    """One sum of terms, or two of which the larger one is the latency, if cross-validation finds them clearly better.

    Args: as for `fit_terms`.
    """
    data = _Data(space, windows, sparsities, ms, samples)
    everything = np.arange(len(ms))
    one = data.one(everything)
    if len(ms) < 2 * FOLDS or data.error((one,), everything) < CLOSE:
        return (one,)
    two = data.two(everything)
    if two is None or data.error(two, everything) > BETTER * data.error((one,), everything):
        return (one,)
    folds = np.random.default_rng(0).permutation(len(ms)) % FOLDS
    errors = np.zeros(2)
    for fold in range(FOLDS):
        kept, out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        single = (data.one(kept),)
        errors += len(out) * np.array([data.error(single, out), data.error(data.two(kept) or single, out)])
    return two if errors[1] < BETTER * errors[0] else (one,)


def slower(space: SparsitySpace, terms: Sequence[Terms], levels: NDArray[np.integer[Any]]) -> Array:
    """The largest of the sums, ms, shape `(N,)`, for levels of shape `(N, L)`, sorted inside every stage."""
    return np.asarray(np.max([each.of(space, levels) for each in terms], axis=0), np.float64)


class _Data:
    """Measurements, and fits to some of them by their numbers."""

    def __init__(
        self, space: SparsitySpace, windows: Sequence[int], sparsities: Sequence[Sparsity], ms: Array, samples: Array
    ) -> None:
        self._space, self._windows, self._sparsities = space, windows, sparsities
        self._ms, self._samples = ms, samples
        self._levels = np.array([space.encode(one) for one in sparsities])
        totals = np.repeat(windows, space.layers)
        kept = np.array([one.kept(windows) for one in sparsities])
        self._share = (kept / totals).mean(axis=1)

    def one(self, numbers: NDArray[np.intp], *, launches: bool = False) -> Terms:
        chosen = [self._sparsities[number] for number in numbers]
        return fit_terms(
            self._space, self._windows, chosen, self._ms[numbers], self._samples[numbers], launches=launches
        )

    def two(self, numbers: NDArray[np.intp]) -> tuple[Terms, Terms] | None:
        """Device and host, by turns: who is slower for which configuration, then what each costs."""
        best: tuple[float, tuple[Terms, Terms]] | None = None
        for start in STARTS:
            waits = self._share[numbers] < np.quantile(self._share[numbers], start)
            for _ in range(PASSES):
                if min(waits.sum(), (~waits).sum()) < LEAST:
                    break
                pair = self.one(numbers[~waits]), self.one(numbers[waits], launches=True)
                error = self.error(pair, numbers)
                if best is None or error < best[0]:
                    best = error, pair
                device, host = (each.of(self._space, self._levels[numbers]) for each in pair)
                before, waits = waits, host > device
                if (waits == before).all():
                    break
        return best[1] if best else None

    def error(self, terms: Sequence[Terms], numbers: NDArray[np.intp]) -> float:
        """Mean relative error on measurements."""
        predicted = slower(self._space, terms, self._levels[numbers])
        return float(np.abs(predicted / self._ms[numbers] - 1).mean())
