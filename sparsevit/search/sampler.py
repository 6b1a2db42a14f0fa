"""NSGA-II that proposes only what meets the bounds and was never tried, and draws the same again after a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sparsevit.search.candidates import Candidates
from sparsevit.search.variation import children
from sparsevit.search.worker import WORKER, this_worker

BATCH = 32
BATCHES = 8
"""Children drawn before the nearest free configuration is taken instead: 8 batches of 32."""


@dataclass(frozen=True)
class Draw:
    """How a trial's configuration was found: children that were thrown away first."""

    infeasible: int = 0
    duplicate: int = 0


class SparsitySampler(NSGAIISampler):
    """Optuna's NSGA-II (generations, elite selection) with children and a first population of our own.

    Optuna stores generations under this class's name: renaming it restarts the evolution of every existing study.

    All trials get their parameters by relative sampling, one level per layer, those of the first generation too: its
    trials are spread over the feasible band of latencies, both ends included. Every trial has a random generator of its
    own, seeded by the study's seed and the number of trials before it that count, so nothing needs to be remembered: a
    search that was stopped, or lost a trial, goes on exactly as if it had not been.
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
        """See the class.

        Args:
            candidates: what may be proposed.
            population: trials of a generation.
            seed: of the study.
            accept: asked before a candidate is proposed, by row; one that is refused is out for good, and another is
                drawn. All are accepted by default.
            refused: rows known to be refused already.
        """
        super().__init__(population_size=population, seed=seed)
        self.candidates = candidates
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(candidates.space.grid) - 1) for name in candidates.space.layer_names
        }
        self._population = population
        self._seed = seed
        self._draws: dict[int, Draw] = {}
        self._rows: dict[int, int] = {}
        self._accept = accept
        self._refused = set(refused)

    def reseed_rng(self) -> None:
        """Nothing to do: every trial has its own generator."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # The very first thing a trial gets: without it nobody could tell whether a running trial's worker is alive.
        study._storage.set_trial_user_attr(trial._trial_id, WORKER, this_worker())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Levels by layer name; nothing when every feasible configuration is taken."""
        # Read once per trial: Optuna's own samplers share this cache.
        trials = study._get_trials(deepcopy=False, use_cache=True)
        others = [one for one in _counting(trials) if one.number != trial.number]
        free = self._free_of(others)
        index = sum(one.number < trial.number for one in others)
        generation = self.get_trial_generation(study, trial)
        parents = self.get_parent_population(study, generation)
        while free.any():
            rng = np.random.default_rng([self._seed, index])
            if parents:
                row, draw = self._child(study, parents, free, rng)
            else:
                row, draw = self._first(index, free, rng), Draw()
            if self._accept is None or self._accept(row):
                break
            self._refused.add(row)
            free[row] = False
        else:
            return {}
        self._draws[trial.number] = draw
        levels = self.candidates.levels_of(np.array([row]))[0].tolist()
        return dict(zip(self.candidates.space.layer_names, levels, strict=True))

    def pop_draw(self, number: int) -> Draw:
        """How the configuration of trial `number` was found; forgets it."""
        return self._draws.pop(number, Draw())

    def free(self, study: Study) -> int:
        """How many feasible configurations no trial has taken yet."""
        return int(self._free_of(_counting(study.get_trials(deepcopy=False))).sum())

    def _free_of(self, trials: Sequence[FrozenTrial]) -> NDArray[np.bool_]:
        """Shape `(N,)`: whether none of `trials` has taken a candidate, nor was it refused."""
        free = np.ones(len(self.candidates), bool)
        free[list(self._refused)] = False
        for one in trials:
            row = self._rows.get(one._trial_id)
            if row is None and self.distributions.keys() <= one.params.keys():
                levels = _levels(one.params, self.distributions)
                row = int(self.candidates.rows([levels])[0])
                if one.state == TrialState.COMPLETE:
                    self._rows[one._trial_id] = row
            if row is not None and row >= 0:
                free[row] = False
        return free

    def _first(self, index: int, free: NDArray[np.bool_], rng: np.random.Generator) -> int:
        """A row for place `index` of the first population: the ends, then one of every stratum in a shuffled order."""
        ms, places = self.candidates.ms, self._population
        order = np.random.default_rng(self._seed).permutation(max(places - 2, 1))
        index %= places
        rows = np.flatnonzero(free)
        if index < 2:
            return int(rows[0] if index == 0 else rows[-1])
        edges = np.linspace(ms[0], ms[-1], places - 1)
        stratum = int(order[index - 2])
        low, high = edges[stratum], edges[stratum + 1]
        inside = rows[(ms[rows] >= low) & (ms[rows] <= high)]
        if len(inside):
            return int(rng.choice(inside))
        return int(rows[np.argmin(np.abs(ms[rows] - (low + high) / 2))])

    def _child(
        self, study: Study, parents: list[FrozenTrial], free: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[int, Draw]:
        """The first child that is feasible and free, else the free candidate nearest to the first child."""
        genomes = self.candidates.canonical([_levels(one.params, self.distributions) for one in parents])
        signs = np.array([-1.0 if one == StudyDirection.MAXIMIZE else 1.0 for one in study.directions])
        losses = np.array([one.values for one in parents]) * signs
        infeasible = duplicate = 0
        nearest_to: NDArray[np.intp] | None = None
        for _ in range(BATCHES):
            drawn = children(genomes, losses, self.candidates.choices, BATCH, rng)
            nearest_to = drawn[0] if nearest_to is None else nearest_to
            for row in self.candidates.rows(drawn):
                if row >= 0 and free[row]:
                    return int(row), Draw(infeasible, duplicate)
                infeasible += int(row < 0)
                duplicate += int(row >= 0)
        assert nearest_to is not None
        nearest = self.candidates.nearest(nearest_to, np.flatnonzero(free))
        return int(rng.choice(nearest)), Draw(infeasible, duplicate)


def _counting(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that are done, and those that a worker is at."""
    return [
        one
        for one in trials
        if one.state == TrialState.COMPLETE or (one.state == TrialState.RUNNING and WORKER in one.user_attrs)
    ]


def _levels(params: Mapping[str, Any], names: Mapping[str, Any]) -> list[int]:
    return [int(params[name]) for name in names]
