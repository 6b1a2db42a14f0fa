"""The storage of workers: trials come out of it as they come out of Optuna's own, in far fewer statements."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from sparsevit.search.candidates import find_candidates
from sparsevit.search.claims import Claims, Nothing
from sparsevit.search.gate import Gate
from sparsevit.search.ledger import Accuracy, Subject
from sparsevit.search.objective import Objective
from sparsevit.search.results import Bounds
from sparsevit.search.samplers import make_sampler
from sparsevit.search.storage import storage_at
from sparsevit.search.trial_storage import TrialStorage
from sparsevit.search.worker import Watch
from sparsevit.sparsity import SparsitySpace

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
LEVEL, WORD = IntDistribution(0, 8), CategoricalDistribution(["a", "b"])
STATES = [None, (TrialState.COMPLETE,), (TrialState.RUNNING,), (TrialState.WAITING, TrialState.FAIL)]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
figures = st.floats(allow_nan=False)
keys = st.sampled_from(["one", "constraints:max", "sparsevit"])
some_trial = st.integers(0, 5)
actions = st.one_of(
    st.tuples(st.just("create")),
    st.tuples(st.just("param"), some_trial, st.sampled_from(["s1", "s2"]), st.integers(0, 8)),
    st.tuples(st.just("word"), some_trial, st.integers(0, 1)),
    st.tuples(st.just("user"), some_trial, keys, json_values),
    st.tuples(st.just("system"), some_trial, keys, json_values),
    st.tuples(st.just("report"), some_trial, st.integers(0, 2), figures),
    st.tuples(st.just("complete"), some_trial, st.tuples(figures, figures)),
    st.tuples(st.just("fail"), some_trial),
)
transactions = st.lists(st.lists(actions, max_size=8), max_size=4)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RDBStorage]:
    with storage_at(f"sqlite:///{tmp_path_factory.mktemp('storage') / 'study.db'}") as storage:
        yield storage


@settings(max_examples=40, deadline=None)
@given(transactions)
def test_trials_come_out_as_in_optunas_own_storage(backend: RDBStorage, packs: list[list[tuple[Any, ...]]]) -> None:
    theirs, ours = InMemoryStorage(), TrialStorage(backend)
    one, other = theirs.create_new_study(DIRECTIONS), ours.create_new_study(DIRECTIONS)
    trials: list[tuple[int, int]] = []
    for pack in packs:
        with ours.transaction():
            for number, (_, trial) in enumerate(trials):
                # A worker holds its own trials; the rest goes the way it does with Optuna.
                if number % 2 and not ours.get_trial(trial).state.is_finished():
                    ours.hold(trial)
            for action in pack:
                if action[0] == "create":
                    trials.append((theirs.create_new_trial(one), ours.create_new_trial(other)))
                elif action[1] < len(trials) and not theirs.get_trial(trials[action[1]][0]).state.is_finished():
                    for storage, trial in zip((theirs, ours), trials[action[1]], strict=True):
                        perform(storage, trial, *action)
                for states in STATES:
                    assert seen(ours, other, states) == seen(theirs, one, states)
        for fresh in (ours, _CachedStorage(backend)):
            assert seen(fresh, other) == seen(theirs, one)


def perform(storage: BaseStorage, trial: int, kind: str, _: int, *rest: Any) -> None:
    if kind == "param" and rest[0] not in storage.get_trial(trial).params:
        storage.set_trial_param(trial, rest[0], rest[1], LEVEL)
    elif kind == "word" and "word" not in storage.get_trial(trial).params:
        storage.set_trial_param(trial, "word", rest[0], WORD)
    elif kind == "user":
        storage.set_trial_user_attr(trial, *rest)
    elif kind == "system":
        storage.set_trial_system_attr(trial, *rest)
    elif kind == "report":
        storage.set_trial_intermediate_value(trial, *rest)
    elif kind == "complete":
        assert storage.set_trial_state_values(trial, TrialState.COMPLETE, *rest)
    elif kind == "fail":
        assert storage.set_trial_state_values(trial, TrialState.FAIL)


def seen(storage: BaseStorage, study: int, states: Any = None) -> list[tuple[Any, ...]]:
    """All of every trial but when it was."""
    found = storage.get_all_trials(study, states=states)
    assert found == [storage.get_trial(one._trial_id) for one in found]
    return [
        (
            one.number,
            one.state,
            one.values,
            one.params,
            one.distributions,
            one.user_attrs,
            one.system_attrs,
            one.intermediate_values,
            one.datetime_complete is not None,
        )
        for one in found
    ]


def test_times_are_as_optuna_writes_them(backend: RDBStorage) -> None:
    ours, theirs = TrialStorage(backend), _CachedStorage(backend)
    study = theirs.create_new_study(DIRECTIONS)
    theirs.set_trial_state_values(theirs.create_new_trial(study), TrialState.COMPLETE, [1.0, 2.0])
    with ours.transaction():
        ours.set_trial_state_values(ours.create_new_trial(study), TrialState.COMPLETE, [1.0, 2.0])
    before, now = theirs.get_all_trials(study)
    for one, other in [(before.datetime_start, now.datetime_start), (before.datetime_complete, now.datetime_complete)]:
        assert one is not None
        assert other is not None
        assert one <= other < one + timedelta(seconds=30)


def test_a_transaction_that_fails_leaves_nothing(backend: RDBStorage) -> None:
    ours = TrialStorage(backend)
    study = ours.create_new_study(DIRECTIONS)

    def fail() -> None:
        with ours.transaction():
            ours.set_trial_user_attr(ours.create_new_trial(study), "key", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert TrialStorage(backend).get_all_trials(study) == []


def test_a_trial_that_is_withdrawn_was_never_there_and_all_else_happened(backend: RDBStorage) -> None:
    ours = TrialStorage(backend)
    study = ours.create_new_study(DIRECTIONS)
    with ours.transaction():
        kept = ours.create_new_trial(study)
        for _ in range(2):
            trial = ours.create_new_trial(study)
            ours.set_trial_user_attr(trial, "key", 1)
            ours.set_trial_intermediate_value(trial, 0, 1.0)
            ours.lock(study)
            assert len(ours.get_all_trials(study)) == 2  # which has written what there was
            assert ours.withdraw(trial)
            assert not ours.withdraw(trial)
    with ours.transaction():
        ours.create_new_trial(study)
    for storage in (ours, TrialStorage(backend)):
        found = storage.get_all_trials(study)
        assert [one.number for one in found] == [0, 1]
        assert [one.user_attrs for one in found] == [{}, {}]
        assert found[0]._trial_id == kept


def test_a_trial_that_another_worker_finished_is_not_held(backend: RDBStorage) -> None:
    ours, others = TrialStorage(backend), TrialStorage(backend)
    study = ours.create_new_study(DIRECTIONS)
    with ours.transaction():
        trial = ours.create_new_trial(study)
    with others.transaction():
        others.set_trial_state_values(trial, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError), ours.transaction():
        ours.hold(trial)
    assert TrialStorage(backend).get_trial(trial).state == TrialState.FAIL


def test_trials_of_several_storages_have_numbers_in_a_row(backend: RDBStorage) -> None:
    storages: list[TrialStorage] = [TrialStorage(backend) for _ in range(3)]
    study = storages[0].create_new_study(DIRECTIONS)
    for storage in storages * 3:
        with storage.transaction():
            storage.create_new_trial(study)
    _CachedStorage(backend).create_new_trial(study)
    for storage in storages:
        assert [one.number for one in storage.get_all_trials(study)] == list(range(10))


def cheap_search(backend: RDBStorage, name: str) -> tuple[Claims, Objective]:
    space, windows, bounds = SparsitySpace((2, 2, 2, 2)), (256, 64, 16, 4), Bounds(0.0, 22.0)
    candidates = find_candidates(space, windows, lambda levels: 30.0 - levels.sum(axis=1), bounds)
    gate = Gate(candidates, bounds)
    sampler = make_sampler("nsga2", candidates, population=4, seed=0, accept=gate)
    optuna.create_study(study_name=name, storage=backend, directions=DIRECTIONS)
    objective = Objective(sampler, Subject((448, 448), windows, "", "", "", ""), "accuracy", bounds, gate)
    return Claims(backend, name, sampler, Watch()), objective


def finish_one(claims: Claims, objective: Objective, asked: int) -> Trial:
    taken = claims.take(asked, objective.fill)
    assert isinstance(taken, tuple)
    trial, proposal = taken
    accuracy = Accuracy({"accuracy": float(np.exp(-proposal.latency_ms))}, 0)
    attributes = objective.outcome(proposal, accuracy, evaluated=True)
    assert claims.finish(trial, attributes, objective.values(proposal, accuracy))
    return trial


def test_a_worker_taken_for_dead_that_finishes_meanwhile_counts(
    backend: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Possible where the database, as PostgreSQL does, lets others write to trials while one is taken."""
    claims, objective = cheap_search(backend, "late")
    finish_one(claims, objective, 2)
    progress = Claims._progress

    def late(self: Claims, study: optuna.Study) -> tuple[int, list[FrozenTrial]]:
        done, running = progress(self, study)
        monkeypatch.undo()
        return done - 1, [*study.get_trials(deepcopy=False), *running]  # as it was a moment ago

    monkeypatch.setattr(Claims, "_progress", late)
    assert claims.take(1, objective.fill) is Nothing.DONE


def test_what_a_trial_costs_does_not_grow(backend: RDBStorage) -> None:
    """In statements: 86 of Optuna's own, each a way to the server and back on PostgreSQL."""
    claims, objective = cheap_search(backend, "cost")
    statements = 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    sa.event.listen(backend.engine, "before_cursor_execute", count)
    costs = []
    for _ in range(60):
        before = statements
        finish_one(claims, objective, 60)
        costs.append(statements - before)
    sa.event.remove(backend.engine, "before_cursor_execute", count)
    assert max(costs) <= 26
    assert max(costs[-8:]) <= max(costs[8:16])
    study = optuna.load_study(study_name="cost", storage=backend)
    assert all(len(one.params) == 4 and one.constraints["latency.max"] <= 0 for one in study.trials)
