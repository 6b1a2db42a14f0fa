"""The evolution of the paper's code, to compare with: for accuracy alone, in large generations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from sparsevit.search.samplers.base import CandidateSampler, Draw, Moment, losses_of

POPULATION, PARENTS = 100, 25
MUTATION = 0.1
"""Probability that a layer's level is drawn anew."""

BATCH = 32
BATCHES = 32
"""Proposals, outside the bounds or known, before the nearest free candidate is taken instead: 32 batches of 32."""


class PaperSampler(CandidateSampler):
    """A random population of 100; then generations of 100, half mutations and half crossovers of the 25 most accurate
    trials so far. What is outside the bounds is rejected, and so is, better than in the paper, what was tried before.
    """

    def propose(self, moment: Moment) -> tuple[int, Draw]:
        generation, place = divmod(moment.index, POPULATION)
        parents = self._parents(moment, generation)
        return self.first_free((self._proposals(parents, place, moment.rng) for _ in range(BATCHES)), moment)

    def _parents(self, moment: Moment, generation: int) -> NDArray[np.intp]:
        """Levels of the most accurate trials of the generations before, shape `(P, L)`; none for the first."""
        first = zip(moment.before[: generation * POPULATION], moment.rows.tolist(), strict=False)
        done = [(one, row) for one, row in first if one.state == TrialState.COMPLETE and row >= 0]
        order = np.argsort(losses_of(moment.study, [one for one, _ in done])[:, 0], kind="stable")[:PARENTS]
        rows = np.array([done[place][1] for place in order.tolist()], np.intp)
        return self.candidates.canonical(self.candidates.levels_of(rows))

    def _proposals(self, parents: NDArray[np.intp], place: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Levels for a place in a generation, shape `(BATCH, L)`."""
        anew = np.stack([rng.choice(allowed, BATCH) for allowed in self.candidates.choices], axis=1)
        if not len(parents):
            return anew
        mothers, fathers = parents[rng.integers(len(parents), size=(2, BATCH))]
        mutation = place < POPULATION // 2
        share, others = (MUTATION, anew) if mutation else (0.5, fathers)
        drawn: NDArray[np.intp] = np.where(rng.random(anew.shape) < share, others, mothers)
        return drawn
