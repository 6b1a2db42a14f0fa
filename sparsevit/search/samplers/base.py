"""What all samplers share: they propose only what meets the bounds and was never tried, and remember nothing.

Every trial has a random generator of its own, seeded by the study's seed and the number of trials before it that count:
a search that was stopped, or lost a trial, goes on exactly as if it had not been.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sparsevit.search.candidates import Candidates
from sparsevit.search.worker import WORKER, this_worker


@dataclass(frozen=True)
class Draw:
    """How a trial's configuration was found: proposals that were thrown away first."""

    infeasible: int = 0
    duplicate: int = 0


@dataclass(frozen=True)
class Moment:
    """What is known when a trial gets its configuration.

    Attributes:
        study: the trial's.
        trial: the one that is drawn for.
        before: the trials that count besides it: done, or being worked at.
        rows: shape `(len(before),)`: which candidates they are of; -1 if of none.
        index: how many of those have a lower number.
        free: shape `(N,)`: which candidates may be proposed; at least one.
        rng: the trial's own.
    """

    study: Study
    trial: FrozenTrial
    before: Sequence[FrozenTrial]
    rows: NDArray[np.intp]
    index: int
    free: NDArray[np.bool_]
    rng: np.random.Generator


@dataclass
class _Settled:
    """The first trials of a study, up to one that is not finished: they stay as they are, so they are read once."""

    of: tuple[object, int] | None  # a study: its storage, and its number there
    length: int = 0
    done: list[FrozenTrial] = field(default_factory=list)
    rows: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))


class CandidateSampler(BaseSampler):
    """Asks `propose` for a candidate and hands it to Optuna as relative parameters, one level per layer.

    Parameters that are no layer's, as in studies that are not a search, are drawn at random.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        seed: int,
        accept: Callable[[int], bool] | None = None,
        refused: Iterable[int] = (),
    ) -> None:
        """See the class.

        Args:
            candidates: what may be proposed.
            seed: of the study.
            accept: asked before a candidate is proposed, by row; one that is refused is out for good, and another is
                drawn. All are accepted by default.
            refused: rows known to be refused already.
        """
        self.candidates = candidates
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(candidates.space.grid) - 1) for name in candidates.space.layer_names
        }
        self._seed = seed
        self._draws: dict[int, Draw] = {}
        self._settled = _Settled(None)
        self._accept = accept
        self._refused = set(refused)
        self._others = RandomSampler(seed)

    @abstractmethod
    def propose(self, moment: Moment) -> tuple[int, Draw]:
        """The row of a free candidate, and what was thrown away on the way to it."""

    def reseed_rng(self) -> None:
        self._others.reseed_rng()  # every trial of a search has its own generator

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # The very first thing a trial gets: without it nobody could tell whether a running trial's worker is alive.
        study._storage.set_trial_user_attr(trial._trial_id, WORKER, this_worker())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Levels by layer name; nothing when every feasible configuration is taken."""
        foreign = {
            name: self.sample_independent(study, trial, name, one)
            for name, one in search_space.items()
            if self.distributions.get(name) != one
        }
        if len(foreign) == len(search_space):
            return foreign
        row = self._draw(study, trial)
        if row is None:
            return {}
        levels = self.candidates.levels_of(np.array([row]))[0].tolist()
        drawn = dict(zip(self.candidates.space.layer_names, levels, strict=True))
        return {name: foreign[name] if name in foreign else drawn[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def pop_draw(self, number: int) -> Draw:
        """How the configuration of trial `number` was found; forgets it."""
        return self._draws.pop(number, Draw())

    def free(self, study: Study) -> int:
        """How many feasible configurations no trial has taken yet."""
        _, rows = self._counting(study, study.get_trials(deepcopy=False))
        return int(self._free_of(rows).sum())

    def row_of(self, trial: FrozenTrial) -> int:
        """Which candidate a trial is of; -1 if of none."""
        if self.distributions.keys() <= trial.params.keys():
            return int(self.candidates.rows([levels_of(trial, self.distributions)])[0])
        return -1

    def spread(self, index: int, places: int, free: NDArray[np.bool_], rng: np.random.Generator) -> int:
        """A row for place `index` of a first population: the ends of the feasible band of latencies, then one of each
        of its strata, in a shuffled order."""
        ms = self.candidates.ms
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

    def first_free(self, batches: Iterable[NDArray[np.integer]], moment: Moment) -> tuple[int, Draw]:
        """The first of the proposed levels, shape `(M, L)` a batch, that is feasible and free; else the free candidate
        nearest to the very first."""
        infeasible = duplicate = 0
        nearest_to: NDArray[np.integer] | None = None
        for drawn in batches:
            nearest_to = drawn[0] if nearest_to is None else nearest_to
            for row in self.candidates.rows(drawn):
                if row >= 0 and moment.free[row]:
                    return int(row), Draw(infeasible, duplicate)
                infeasible += int(row < 0)
                duplicate += int(row >= 0)
        assert nearest_to is not None
        nearest = self.candidates.nearest(nearest_to, np.flatnonzero(moment.free))
        return int(moment.rng.choice(nearest)), Draw(infeasible, duplicate)

    def _draw(self, study: Study, trial: FrozenTrial) -> int | None:
        # Read once per trial: Optuna's own samplers share this cache.
        trials = study._get_trials(deepcopy=False, use_cache=True)
        before, rows = self._counting(study, trials, trial.number)
        free = self._free_of(rows)
        index = bisect_left(before, trial.number, key=lambda one: one.number)
        while free.any():
            rng = np.random.default_rng([self._seed, index])
            row, draw = self.propose(Moment(study, trial, before, rows, index, free, rng))
            if self._accept is None or self._accept(row):
                self._draws[trial.number] = draw
                return row
            self._refused.add(row)
            free[row] = False
        return None

    def _counting(
        self, study: Study, trials: Sequence[FrozenTrial], but: int | None = None
    ) -> tuple[list[FrozenTrial], NDArray[np.intp]]:
        """Trials that are done, and those that a worker is at, but for number `but`; and the rows of all."""
        of = study._storage, study._study_id
        settled = self._settled if self._settled.of == of else _Settled(of)
        fresh = [one for one in trials[settled.length :] if one.number != but and _counts(one)]
        rows = np.array([self.row_of(one) for one in fresh], np.intp)
        found = settled.done + fresh, np.concatenate([settled.rows, rows])
        length = next(
            (place for place in range(settled.length, len(trials)) if not trials[place].state.is_finished()),
            len(trials),
        )
        last = len(trials) if length == len(trials) else trials[length].number
        new = bisect_left(fresh, last, key=lambda one: one.number)
        # In place of the old one, not changed: other threads may be at it.
        self._settled = _Settled(of, length, settled.done + fresh[:new], np.concatenate([settled.rows, rows[:new]]))
        return found

    def _free_of(self, taken: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Shape `(N,)`: whether a candidate is neither taken nor was refused."""
        free = np.ones(len(self.candidates), bool)
        free[list(self._refused)] = False
        free[taken[taken >= 0]] = False
        return free


def levels_of(trial: FrozenTrial, names: Mapping[str, Any]) -> list[int]:
    """The levels of the layers `names`, as a trial has them."""
    return [int(trial.params[name]) for name in names]


def losses_of(study: Study, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """Objectives to minimise, shape `(P, objectives)`."""
    signs = np.array([-1.0 if one == StudyDirection.MAXIMIZE else 1.0 for one in study.directions])
    losses: NDArray[np.float64] = np.array([one.values for one in trials]).reshape(len(trials), len(signs)) * signs
    return losses


def _counts(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.RUNNING and WORKER in trial.user_attrs)
