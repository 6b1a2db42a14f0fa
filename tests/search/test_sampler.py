"""The sampler alone, in memory: feasible, new, reproducible, and better than chance."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optuna.trial import Trial, TrialState

from sparsevit.search.candidates import Candidates, find_candidates
from sparsevit.search.results import Bounds
from sparsevit.search.sampler import SparsitySampler
from sparsevit.search.variation import children, mutate
from sparsevit.sparsity import SparsitySpace

WINDOWS = (256, 64, 16, 4)
SPACE = SparsitySpace((2, 2, 4, 2))
COSTS = np.array([1.0, 0.6, 0.5, 0.5, 0.4])


def predict(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return 30 - levels @ COSTS


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def run(candidates: Candidates, trials: int, *, seed: int = 0, population: int = 10) -> optuna.Study:
    sampler = SparsitySampler(candidates, population=population, seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(lambda trial: evaluate(trial, candidates), n_trials=trials)
    return study


def evaluate(trial: Trial, candidates: Candidates) -> tuple[float, float]:
    levels = [trial.suggest_int(name, 0, 8) for name in SPACE.layer_names]
    assert trial.relative_params
    ratios = np.array(levels) / 10
    accuracy = 0.8 - float((np.array([0.02, 0.2, 0.1, 0.05, 0.3]) * ratios**2).sum())
    return accuracy, float(candidates.ms[candidates.rows([levels])[0]])


def rows(study: optuna.Study, candidates: Candidates) -> list[int]:
    return [int(candidates.rows([[one.params[name] for name in SPACE.layer_names]])[0]) for one in study.trials]


@settings(max_examples=8)
@given(st.floats(18, 29), st.floats(0, 4), st.integers(0, 2**31))
def test_all_trials_are_feasible_and_new(high: float, width: float, seed: int) -> None:
    candidates = find_candidates(SPACE, WINDOWS, predict, Bounds(high - width - 0.2, high))
    study = run(candidates, min(25, len(candidates)), seed=seed, population=6)
    found = rows(study, candidates)
    assert min(found) >= 0
    assert len(set(found)) == len(found)


def test_first_population_has_both_ends_and_every_stratum() -> None:
    candidates = find_candidates(SPACE, WINDOWS, predict, Bounds(15.0, 25.0))
    ms = [one.values[1] for one in run(candidates, 10).trials]
    assert ms[:2] == [candidates.ms[0], candidates.ms[-1]]
    strata = np.floor((np.array(ms[2:]) - 15) / (10 / 8)).clip(0, 7)
    assert len(set(strata)) >= 7  # a latency on an edge may count for the next


def test_every_candidate_is_found_in_the_end_and_then_none() -> None:
    candidates = find_candidates(SPACE, WINDOWS, predict, Bounds(15.0, 15.05))
    assert 20 < len(candidates) < 150
    study = run(candidates, len(candidates), population=4)
    assert sorted(rows(study, candidates)) == list(range(len(candidates)))
    sampler = study.sampler
    assert isinstance(sampler, SparsitySampler)
    assert sampler.free(study) == 0
    assert study.ask().relative_params == {}


def test_other_seeds_search_elsewhere_and_the_same_seed_the_same() -> None:
    candidates = find_candidates(SPACE, WINDOWS, predict, Bounds(0.0, 25.0))
    one, same, other = (rows(run(candidates, 20, seed=seed), candidates) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize("then", [(1, 9, 15), (5, 10, 10)], ids=["anywhere", "the first of a generation"])
def test_failed_trials_leave_no_trace(then: tuple[int, ...]) -> None:
    candidates = find_candidates(SPACE, WINDOWS, predict, Bounds(0.0, 25.0))
    whole = rows(run(candidates, 30), candidates)
    study = run(candidates, 5)
    for more in then:
        trial = study.ask()
        for name in SPACE.layer_names:
            trial.suggest_int(name, 0, 8)
        study.tell(trial, state=TrialState.FAIL)
        study.sampler = SparsitySampler(candidates, population=10, seed=0)
        study.optimize(lambda one: evaluate(one, candidates), n_trials=more)
    complete = [one for one in study.trials if one.state == TrialState.COMPLETE]
    assert [int(candidates.rows([[one.params[n] for n in SPACE.layer_names]])[0]) for one in complete] == whole


def test_evolution_beats_chance() -> None:
    candidates = find_candidates(SPACE, WINDOWS, predict, Bounds(0.0, 22.0))
    everything = [float(accuracies(candidates.levels).max())]
    evolved = [max(one.values[0] for one in run(candidates, 60, seed=seed).trials) for seed in range(5)]
    rng = np.random.default_rng(0)
    chance = [accuracies(candidates.levels[rng.choice(len(candidates), 60, False)]).max() for _ in range(50)]
    assert np.mean(evolved) > np.mean(chance) + 0.3 * (everything[0] - np.mean(chance))


def accuracies(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return 0.8 - (np.array([0.02, 0.2, 0.1, 0.05, 0.3]) * (levels / 10) ** 2).sum(axis=1)


def test_no_warning_reaches_the_user() -> None:
    candidates = find_candidates(SPACE, WINDOWS, predict, Bounds(0.0, 25.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(candidates, 12)
    assert [str(one.message) for one in caught] == []


@given(st.integers(0, 2**31))
def test_mutation_keeps_to_the_choices_and_changes_little(seed: int) -> None:
    choices = [np.array([0, 1, 3, 5]), np.array([0, 2, 4]), np.array([7])]
    levels = np.tile([3, 2, 7], (200, 1))
    changed = mutate(levels, choices, np.random.default_rng(seed))
    for layer, allowed in enumerate(choices):
        assert set(changed[:, layer]) <= set(allowed.tolist())
    assert (changed == levels).mean() > 0.6


def test_children_of_equal_parents_are_their_mutations() -> None:
    choices = [np.arange(9)] * 3
    parents = np.tile([1, 2, 3], (4, 1))
    drawn = children(parents, np.zeros((4, 2)), choices, 500, np.random.default_rng(0))
    unchanged = (drawn == parents[0]).all(axis=1).mean()
    assert 0.2 < unchanged < 0.5


def test_dominating_parents_have_more_children() -> None:
    parents = np.array([[0, 0, 0], [8, 8, 8]])
    losses = np.array([[0.0, 0.0], [1.0, 1.0]])
    drawn = children(parents, losses, [np.arange(9)] * 3, 1000, np.random.default_rng(0))
    assert (drawn == 0).mean() > 2 * (drawn == 8).mean()
