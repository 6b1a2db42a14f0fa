"""NSGA-II that proposes only what meets the bounds and was never tried, and draws the same again after a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

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
        self._latest: _Latest | None = None
        self._parents: tuple[tuple[object, int, int], list[FrozenTrial]] | None = None

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

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """As Optuna's, which goes through all trials every time."""
        key, of = self._get_generation_key(), (study._storage, study._study_id)
        if key in trial.system_attrs:
            return int(trial.system_attrs[key])
        trials = study._get_trials(deepcopy=False, use_cache=True)
        latest = self._latest if self._latest is not None and self._latest.of == of else _Latest(of)
        latest = self._latest = latest.after(trials, key)
        unsettled = latest.among(trials[latest.length :], key)
        generation = unsettled.generation + (unsettled.count >= self._population)
        study._storage.set_trial_system_attr(trial._trial_id, key, generation)
        return generation

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """As Optuna's, which reads what it stored for all generations every time: that never changes.

        They come in the order of their numbers. Optuna's order is another one when it stores them, so that a trial
        which is made again would get another configuration.
        """
        of = study._storage, study._study_id, generation
        if self._parents is None or self._parents[0] != of:
            self._parents = of, sorted(super().get_parent_population(study, generation), key=lambda one: one.number)
        return self._parents[1]


@dataclass(frozen=True)
class _Latest:
    """The latest generation among the first `length` trials of a study, all finished, and how many completed it has."""

    of: tuple[object, int]
    length: int = 0
    generation: int = 0
    count: int = 0

    def after(self, trials: Sequence[FrozenTrial], key: str) -> _Latest:
        """With as many more of a study's `trials` as are finished, up to the first that is not."""
        rest = trials[self.length :]
        settled = next((place for place, one in enumerate(rest) if not one.state.is_finished()), len(rest))
        return replace(self.among(rest[:settled], key), length=self.length + settled)

    def among(self, more: Sequence[FrozenTrial], key: str) -> _Latest:
        """With `more` trials, whose generations are the system attribute `key`."""
        generation, count = self.generation, self.count
        for trial in more:
            its = trial.system_attrs.get(key, -1) if trial.state == TrialState.COMPLETE else -1
            if its > generation:
                generation, count = its, 0
            count += its == generation
        return replace(self, generation=generation, count=count)
