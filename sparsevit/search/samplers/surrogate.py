"""Evaluates what a model of accuracy, fitted on the trials so far, expects to add the most to the front."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from sparsevit.search.candidates import Candidates
from sparsevit.search.samplers.accuracy_model import AccuracyModel
from sparsevit.search.samplers.base import CandidateSampler, Draw, Moment, losses_of
from sparsevit.search.samplers.improvement import expected_gain, front_of
from sparsevit.search.variation import mutate

POOL = 1 << 14
"""Free candidates that are ranked for a trial: all, or so many random ones besides the front's mutations."""

MUTATIONS = 1 << 10

SHORTLIST = 512
"""Of the pool, those expected farthest above the front; how uncertain they are is asked for these alone."""

FITTED = 1000
"""Trials that the model is fitted to, at most: those nearest to the front."""

BEYOND = 1.0
"""How far beyond the slowest candidate hypervolumes reach, as a share of the feasible band: accuracy close to the upper
bound counts, too."""

START = 6
"""Trials before the model is asked; what it assumes beforehand (see there) makes up for their being few."""


class SurrogateSampler(CandidateSampler):
    """A few trials spread over the feasible band, then the candidate with the highest expected gain in
    hypervolume each time. Nothing is drawn that could be infeasible or a repetition.

    The first objective counts as accuracy, where it is finite; latencies are the candidates' own. Trials that other
    workers are at count as if they had come out as expected, so that workers do not all try the same.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        seed: int,
        accept: Callable[[int], bool] | None = None,
        refused: Iterable[int] = (),
    ) -> None:
        super().__init__(candidates, seed=seed, accept=accept, refused=refused)
        self._ratios = np.array([float(value) for value in candidates.space.grid])

    def propose(self, moment: Moment) -> tuple[int, Draw]:
        complete = np.array([one.state == TrialState.COMPLETE for one in moment.before], bool)
        places = np.flatnonzero(complete & (moment.rows >= 0))
        accuracies = -losses_of(moment.study, [moment.before[place] for place in places.tolist()])[:, 0]
        finite = np.isfinite(accuracies)
        if moment.index < START or finite.sum() < 2:
            return self.spread(moment.index, START, moment.free, moment.rng), Draw()
        rows, accuracies = self._nearest_the_front(moment.rows[places[finite]], accuracies[finite])
        model = AccuracyModel.fit(self._ratios, self.candidates.levels_of(rows), accuracies)
        pending = moment.rows[~complete & (moment.rows >= 0)]
        if len(pending):
            rows = np.concatenate([rows, pending])
            accuracies = np.concatenate([accuracies, model.mean(self.candidates.levels_of(pending))])
            model = AccuracyModel.fit(self._ratios, self.candidates.levels_of(rows), accuracies)
        return self._best(model, rows, accuracies, moment), Draw()

    def _nearest_the_front(
        self, rows: NDArray[np.intp], accuracies: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Of many trials those that count for the model, so that a trial of a long search costs no more."""
        if len(rows) <= FITTED:
            return rows, accuracies
        times, heights = front_of(self.candidates.ms[rows], accuracies)
        below = heights[np.searchsorted(times, self.candidates.ms[rows], side="right") - 1] - accuracies
        kept = np.sort(np.argsort(below, kind="stable")[:FITTED])
        return rows[kept], accuracies[kept]

    def _best(
        self, model: AccuracyModel, rows: NDArray[np.intp], accuracies: NDArray[np.float64], moment: Moment
    ) -> int:
        ms = self.candidates.ms
        front = front_of(ms[rows], accuracies)
        # Ties in accuracy are of no harm here: their mutations are ranked too.
        pool = self._pool(rows[np.isin(accuracies, front[1])], moment)
        reached = np.searchsorted(front[0], ms[pool], side="right") - 1
        heights = np.where(reached >= 0, front[1][reached], accuracies.min())
        lift = model.mean(self.candidates.levels_of(pool)) - heights
        if len(pool) > SHORTLIST:
            pool = pool[np.argpartition(-lift, SHORTLIST)[:SHORTLIST]]
        means, deviations = model.predict(self.candidates.levels_of(pool))
        reference = float(ms[-1] + BEYOND * (ms[-1] - ms[0]) + 1e-9), float(accuracies.min())
        gains = expected_gain(ms[pool], means, deviations, front, reference)
        return int(pool[np.argmax(gains)])

    def _pool(self, front: NDArray[np.intp], moment: Moment) -> NDArray[np.intp]:
        """Free candidates to rank; some may be there twice."""
        rows = np.flatnonzero(moment.free)
        if len(rows) <= POOL:
            return rows
        drawn = rows[moment.rng.integers(len(rows), size=POOL)]
        parents = self.candidates.canonical(self.candidates.levels_of(moment.rng.choice(front, MUTATIONS)))
        near = self.candidates.rows(mutate(parents, self.candidates.choices, moment.rng))
        near = near[near >= 0]
        return np.concatenate([drawn, near[moment.free[near]]])
