"""NSGA-II that proposes only what meets the bounds and was never tried, and draws the same again after a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from optuna.samplers import NSGAIISampler

from sparsevit.search.candidates import Candidates
from sparsevit.search.samplers.base import CandidateSampler, Draw, Moment, levels_of, losses_of
from sparsevit.search.variation import children

BATCH = 32
BATCHES = 8
"""Children drawn before the nearest free configuration is taken instead: 8 batches of 32."""


class SparsitySampler(CandidateSampler, NSGAIISampler):
    """Optuna's NSGA-II (generations, elite selection) with children and a first population of our own.

    Optuna stores generations under this class's name: renaming it restarts the evolution of every existing study.

    All trials get their parameters by relative sampling, one level per layer, those of the first generation too: its
    trials are spread over the feasible band of latencies, both ends included.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        population: int,
        seed: int,
        accept: Callable[[int], bool] | None = None,
        refused: Iterable[int] = (),
    ) -> None:
        """`population` is the trials of a generation; the rest is as for every `CandidateSampler`."""
        NSGAIISampler.__init__(self, population_size=population, seed=seed)
        CandidateSampler.__init__(self, candidates, seed=seed, accept=accept, refused=refused)
        self._population = population

    def propose(self, moment: Moment) -> tuple[int, Draw]:
        generation = self.get_trial_generation(moment.study, moment.trial)
        population = self.get_parent_population(moment.study, generation)
        parents = [one for one in population if self.row_of(one) >= 0]
        if not parents:
            return self.spread(moment.index, self._population, moment.free, moment.rng), Draw()
        genomes = self.candidates.canonical([levels_of(one, self.distributions) for one in parents])
        losses, choices = losses_of(moment.study, parents), self.candidates.choices
        drawn = (children(genomes, losses, choices, BATCH, moment.rng) for _ in range(BATCHES))
        return self.first_free(drawn, moment)
