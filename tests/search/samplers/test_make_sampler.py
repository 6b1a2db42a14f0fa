"""Every sampler by its name: feasible, new, reproducible, and able to tell when nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.trial import Trial, TrialState

from sparsevit.errors import UserError
from sparsevit.search import samplers
from sparsevit.search.candidates import Candidates, find_candidates
from sparsevit.search.results import Bounds
from sparsevit.search.samplers import NAMES, SamplerName, check_sampler, make_sampler, surrogate
from sparsevit.search.samplers.base import CandidateSampler
from sparsevit.search.samplers.paper import PARENTS, POPULATION
from sparsevit.sparsity import SparsitySpace

WINDOWS = (256, 64, 16, 4)
SPACE = SparsitySpace((2, 2, 4, 2))
COSTS = np.array([1.0, 0.6, 0.5, 0.5, 0.4])
LOSSES = np.array([0.02, 0.2, 0.1, 0.05, 0.3])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def band(low: float, high: float) -> Candidates:
    return find_candidates(SPACE, WINDOWS, lambda levels: 30 - levels @ COSTS, Bounds(low, high))


def accuracies(levels: NDArray[np.integer]) -> NDArray[np.float64]:
    return 0.8 - (LOSSES * (levels / 10) ** 2).sum(axis=-1)


def objective(candidates: Candidates) -> Callable[[Trial], tuple[float, float]]:
    def evaluate(trial: Trial) -> tuple[float, float]:
        levels = np.array([trial.suggest_int(name, 0, 8) for name in SPACE.layer_names])
        assert trial.relative_params
        ms = float(candidates.ms[candidates.rows([levels])[0]])
        trial.set_constraint("latency.max", ms / candidates.ms[-1] - 1)
        return float(accuracies(levels)), ms

    return evaluate


def study_of(name: SamplerName, candidates: Candidates, trials: int, *, seed: int = 0, **rest: object) -> optuna.Study:
    sampler = make_sampler(name, candidates, population=8, seed=seed, **rest)  # type: ignore[arg-type]
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective(candidates), n_trials=trials)
    return study


def rows(study: optuna.Study) -> list[int]:
    sampler = study.sampler
    assert isinstance(sampler, CandidateSampler)
    return [sampler.row_of(one) for one in study.trials if one.state == TrialState.COMPLETE]


TRIALS = {"gp": 12, "paper": POPULATION + 20}


@pytest.mark.parametrize("name", NAMES)
def test_all_trials_are_feasible_and_new_and_the_same_again_from_the_same_seed(name: SamplerName) -> None:
    candidates, trials = band(15.0, 22.0), TRIALS.get(name, 30)
    found = rows(study_of(name, candidates, trials))
    assert len(found) == trials
    assert min(found) >= 0
    assert len(set(found)) == trials
    assert rows(study_of(name, candidates, trials)) == found
    assert rows(study_of(name, candidates, trials, seed=1)) != found


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_was_stopped_and_lost_a_trial_goes_on_as_if_it_had_not_been(name: SamplerName) -> None:
    candidates, trials = band(15.0, 22.0), TRIALS.get(name, 30)
    whole = rows(study_of(name, candidates, trials))
    study = study_of(name, candidates, trials - 2)
    lost = study.ask()
    for layer in SPACE.layer_names:
        lost.suggest_int(layer, 0, 8)
    study.tell(lost, state=TrialState.FAIL)
    study.sampler = make_sampler(name, candidates, population=8, seed=0)
    study.optimize(objective(candidates), n_trials=2)
    assert rows(study) == whole


@pytest.mark.parametrize("name", [one for one in NAMES if one != "gp"])
def test_every_candidate_is_found_in_the_end_and_then_none(name: SamplerName) -> None:
    candidates = band(15.0, 15.05)
    assert 20 < len(candidates) < 150
    study = study_of(name, candidates, len(candidates))
    assert sorted(rows(study)) == list(range(len(candidates)))
    assert isinstance(study.sampler, CandidateSampler)
    assert study.sampler.free(study) == 0
    assert study.ask().relative_params == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_is_not_proposed(name: SamplerName) -> None:
    candidates = band(15.0, 22.0)
    asked: list[int] = []

    def accept(row: int) -> bool:
        asked.append(row)
        return row % 2 == 0

    found = rows(study_of(name, candidates, 12, accept=accept, refused=range(0, len(candidates), 4)))
    assert {row % 4 for row in found} == {2}
    assert not any(row % 4 == 0 for row in asked)
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "tpe", "gp"])
def test_the_first_trials_reach_both_ends_of_the_band(name: SamplerName) -> None:
    candidates = band(15.0, 22.0)
    assert rows(study_of(name, candidates, 2)) == [0, len(candidates) - 1]


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "tpe"])  # gp takes half a minute for it
def test_more_accurate_ones_are_found_than_by_chance(name: SamplerName) -> None:
    candidates = band(0.0, 22.0)
    best = accuracies(candidates.levels).max()
    lost = [best - max(one.values[0] for one in study_of(name, candidates, 40, seed=seed).trials) for seed in (0, 1)]
    rng = np.random.default_rng(0)
    chance = [accuracies(candidates.levels[rng.choice(len(candidates), 40, False)]).max() for _ in range(50)]
    assert np.mean(lost) < 0.8 * (best - np.mean(chance))


def test_the_paper_descends_from_its_25_most_accurate() -> None:
    candidates = band(15.0, 22.0)
    study = study_of("paper", candidates, 2 * POPULATION)
    levels = np.array([[one.params[name] for name in SPACE.layer_names] for one in study.trials])
    first = np.argsort(-accuracies(levels[:POPULATION]), kind="stable")[:PARENTS]
    parents = levels[first]
    mutated = levels[POPULATION : POPULATION + POPULATION // 2]
    changed = (mutated[:, None] != parents).sum(axis=2).min(axis=1)
    crossed = levels[POPULATION + POPULATION // 2 :]
    from_someone = (crossed[:, None] == parents).any(axis=1)
    assert np.median(changed) <= 2
    # Sorting inside the stage, and what stands in for the same kept windows, moves a level now and then.
    assert from_someone.mean() > 0.9


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "paper", "tpe"])
def test_what_other_workers_are_at_is_not_proposed_again(name: SamplerName) -> None:
    candidates = band(15.0, 22.0)
    study = study_of(name, candidates, 20)
    asked = [study.ask() for _ in range(12)]
    for trial in asked:
        for layer in SPACE.layer_names:
            trial.suggest_int(layer, 0, 8)
    assert isinstance(study.sampler, CandidateSampler)
    taken = [study.sampler.row_of(one) for one in study.get_trials()]
    assert len(set(taken)) == 32


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "paper"])
def test_trials_that_end_in_another_order_than_they_began_are_all_seen(name: SamplerName) -> None:
    candidates = band(15.0, 15.2)
    study = study_of(name, candidates, 3)
    for _ in range(8):
        slow, quick = study.ask(), study.ask()
        for trial in (quick, slow):
            study.tell(trial, objective(candidates)(trial))
    assert len(set(rows(study))) == 19
    fresh = make_sampler(name, candidates, population=8, seed=0)
    assert isinstance(study.sampler, CandidateSampler)
    assert fresh.free(study) == study.sampler.free(study) == len(candidates) - 19


def test_a_sampler_may_go_from_one_study_to_another() -> None:
    candidates = band(15.0, 22.0)
    sampler = study_of("surrogate", candidates, 20).sampler
    other = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    other.optimize(objective(candidates), n_trials=20)
    assert rows(other) == rows(study_of("surrogate", candidates, 20))


def test_infinite_accuracies_are_left_out_of_the_model() -> None:
    candidates = band(15.0, 22.0)
    study = study_of("surrogate", candidates, 8)
    for _ in range(6):
        trial = study.ask()
        _, ms = objective(candidates)(trial)
        study.tell(trial, [-np.inf, ms])
    study.optimize(objective(candidates), n_trials=10)
    assert len(set(rows(study))) == 24


def test_of_very_many_trials_those_near_the_front_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = band(0.0, 22.0)
    whole = [one.values for one in study_of("surrogate", candidates, 60).trials]
    monkeypatch.setattr(surrogate, "FITTED", 30)
    few = [one.values for one in study_of("surrogate", candidates, 60).trials]
    assert few[:31] == whole[:31]
    assert few[31:] != whole[31:]
    assert max(few)[0] == pytest.approx(max(whole)[0], abs=0.003)


def test_gp_without_scipy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^search.sampler = 'gp' needs scipy: pip install scipy, or choose"):
        make_sampler("gp", band(15.0, 22.0), population=8, seed=0)
    check_sampler("surrogate")
