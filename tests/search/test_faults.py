"""What a search goes through without losing or repeating anything: one process, one fault at a time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
import torch

from sparsevit.cli.app import main
from sparsevit.errors import UserError
from sparsevit.search import ledger, patience, trial_storage, worker
from sparsevit.search.load import load_results
from sparsevit.search.results import StudyResults
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import open_storage
from sparsevit.search.worker import Presence, Watch, ask_to_stop, is_dead, this_worker, worker_label, workers_of

Load = Callable[..., StudySpec]


def configurations(results: StudyResults) -> list[str]:
    return [str(one.sparsity) for one in results.trials]


def paid(fakes: ModuleType, images: int = 10) -> list[Any]:
    """What was evaluated for trials, in order."""
    return [one.kept(fakes.WINDOWS) for one, count in fakes.FakeEvaluator.asked if count == images]


def states(url: str) -> list[str]:
    study = optuna.load_study(study_name="small", storage=open_storage(url))
    return [one.state.name for one in study.get_trials(deepcopy=False)]


@pytest.fixture
def whole(load: Load, fakes: ModuleType) -> StudyResults:
    """The study as it is without a fault."""
    results = search(load(), trials=14, out="whole")
    fakes.FakeEvaluator.asked.clear()
    return results


@pytest.mark.parametrize("error", [ValueError("a loose cable"), RuntimeError("CUDA error: unknown")])
def test_an_evaluation_that_raises_once_changes_nothing(
    load: Load, fakes: ModuleType, whole: StudyResults, error: Exception
) -> None:
    at = iter(range(1000))

    def fail() -> None:
        if next(at) == 6:
            raise error

    fakes.FakeEvaluator.before = fail
    results = search(load(), trials=14, out="parts")
    assert configurations(results) == configurations(whole)
    assert results.failed == 0
    assert len(paid(fakes)) == len(set(paid(fakes))) == 14


def test_a_configuration_that_cannot_be_evaluated_is_left_out(
    load: Load, fakes: ModuleType, whole: StudyResults
) -> None:
    bad = whole.trials[5].sparsity
    original = fakes.FakeEvaluator.accuracy

    def accuracy(self: Any, sparsity: Any, **rest: Any) -> Any:
        if sparsity == bad:
            return {"bbox_mAP": float("nan"), "segm_mAP": 0.1}
        return original(self, sparsity, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakes.FakeEvaluator, "accuracy", accuracy)
        results = search(load(), trials=14, out="parts")
    assert len(results.trials) == 14
    assert results.failed == 1
    assert str(bad) not in configurations(results)
    assert all(one.feasible for one in results.trials)
    assert "RUNNING" not in states(load().url("parts"))


def cuda_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("allocate", [cuda_memory, lambda: torch.empty(1 << 55), lambda: bytes(1 << 62)])
def test_memory_that_does_not_suffice_makes_batches_smaller(
    load: Load,
    fakes: ModuleType,
    whole: StudyResults,
    allocate: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = 8

    def smaller_batch(self: Any) -> bool:
        nonlocal batch
        batch //= 2
        return batch > 0

    def fail() -> None:
        if len(fakes.FakeEvaluator.asked) >= 4 and batch > 2:
            allocate()

    monkeypatch.setattr(fakes.FakeEvaluator, "smaller_batch", smaller_batch, raising=False)
    fakes.FakeEvaluator.before = fail
    results = search(load(), trials=14, out="parts")
    assert batch == 2
    assert configurations(results) == configurations(whole)
    assert results.failed == 0


def test_memory_that_never_suffices_ends_the_search(
    load: Load, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(load(), trials=2)

    def fail() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(fakes.FakeEvaluator, "smaller_batch", lambda self: False, raising=False)
    fakes.FakeEvaluator.before = fail
    with pytest.raises(UserError, match=r"3 configurations in a row, the last one .*: MemoryError: no room"):
        search(load(), trials=5)


def test_a_disk_that_is_full_for_a_while_loses_nothing(
    load: Load,
    fakes: ModuleType,
    whole: StudyResults,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search(load(), trials=3, out="parts")
    full, waits = False, 0

    def limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {1 if full else 1 << 30}")  # 1: no more than there are

    def fill() -> None:
        nonlocal full
        full = full or (len(paid(fakes)) >= 6 and not waits)

    def free(seconds: float) -> None:
        nonlocal full, waits
        waits += 1
        full = waits < 4

    fakes.FakeEvaluator.before = fill
    monkeypatch.setattr(patience, "sleep", free)
    sa.event.listen(sa.Engine, "begin", limit)
    try:
        results = search(load(), trials=14, out="parts")
    finally:
        sa.event.remove(sa.Engine, "begin", limit)
    assert waits >= 4
    assert "the database fails (database or disk is full): trying again" in capsys.readouterr().out
    assert configurations(results) == configurations(whole)
    assert len(paid(fakes)) == len(set(paid(fakes))) == 14
    assert results.failed == 0
    assert "RUNNING" not in states(load().url("parts"))


def test_a_database_that_never_recovers_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def away() -> None:
        tries.append(None)
        raise sa.exc.OperationalError("INSERT", {}, Exception("server closed\nthe connection"))

    monkeypatch.setattr(patience, "PATIENCE_S", 0.2)
    with pytest.raises(UserError, match="the database failed for 0 minutes: server closed the connection"):
        patience.patiently(away)
    assert len(tries) > 1


def test_a_mistake_in_a_query_is_not_waited_for() -> None:
    def wrong() -> None:
        raise sa.exc.ProgrammingError("SELECT", {}, Exception("no such table"))

    with pytest.raises(sa.exc.ProgrammingError):
        patience.patiently(wrong)


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_is_set_changes_nothing(
    load: Load, fakes: ModuleType, whole: StudyResults, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of this host's living and dead workers are told apart, wherever the clock on the wall stands."""
    storage = open_storage(load().url("parts"))
    search(load(), trials=5, out="parts")
    study = optuna.load_study(study_name="small", storage=storage)
    trial = study._storage.create_new_trial(study._study_id)
    study._storage.set_trial_user_attr(trial, "worker", f"{socket.gethostname()}:{2**22 + 1}")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE trials SET datetime_start = datetime('now', '{-days} days')")
        connection.exec_driver_sql(f"UPDATE trials SET datetime_complete = datetime('now', '{-days} days')")
    results = search(load(), trials=14, out="parts")
    assert configurations(results) == configurations(whole)
    assert results.failed == 1
    assert len(paid(fakes)) == len(set(paid(fakes)))


def test_a_clock_that_runs_backward_changes_nothing(
    load: Load, study_file: Path, fakes: ModuleType, whole: StudyResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set back by an hour whenever it is read, while the search goes on and for its report."""
    hours = 0

    class Backward(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            nonlocal hours
            hours += 1
            return datetime.now(tz) - timedelta(hours=hours)

    for module in (worker, ledger, trial_storage):
        monkeypatch.setattr(module, "datetime", Backward)
    with pytest.raises(SystemExit) as ended:
        main(["search", str(study_file), "--trials", "14", "--out", "parts"])
    assert ended.value.code == 0
    results = load_results(load(), out="parts")
    assert hours > 2 * 14
    assert results.trials[-1].started < results.trials[0].started
    assert configurations(results) == configurations(whole)
    assert results.failed == 0
    assert len(paid(fakes)) == len(set(paid(fakes))) == 14


def test_a_watch_goes_by_counters_and_by_processes() -> None:
    now = 0.0
    watch = Watch(grace_s=10, clock=lambda: now)
    far = {"host:1:2:3", "other:1:2:3"}
    assert watch.look({"host:1:2:3": 5}, far) == set()
    now = 9.0
    assert watch.look({"host:1:2:3": 6}, far) == set()
    now = 11.0
    assert watch.look({"host:1:2:3": 6}, far) == {"other:1:2:3"}  # it has no counter, which stands still
    now = 19.5
    assert watch.look({"host:1:2:3": 6}, far) == far
    assert watch.look({"host:1:2:3": 7}, far) == {"other:1:2:3"}


def test_names_of_workers() -> None:
    me = this_worker()
    assert not is_dead(me)
    host, process, namespace, start = me.split(":")
    assert worker_label(me) == f"{host}:{process}" == f"{socket.gethostname()}:{os.getpid()}"
    assert is_dead(f"{host}:{process}:{namespace}:{int(start) - 1}")  # another one that had this number before
    assert not is_dead(f"elsewhere:{process}:{namespace}:1")
    assert not is_dead(f"{host}:{process}:1:1")  # a container of the same name
    assert not is_dead("")


def test_a_worker_is_present_beats_and_is_asked_to_stop(load: Load) -> None:
    search(load(), trials=2)
    engine = open_storage(load().url()).engine
    with Presence(engine, "small", beat_s=0.01) as presence:
        (me,) = workers_of(engine, "small")
        assert me.worker == this_worker()
        assert me.trial is None
        assert not presence.stopped
        assert ask_to_stop(engine, "other") == 0
        assert ask_to_stop(engine, "small") == 1
        assert presence._stop.wait(10)
    assert workers_of(engine, "small") == []


def test_stopped_between_trials_and_gone_on_with_equals_uninterrupted(
    load: Load, fakes: ModuleType, whole: StudyResults, capsys: pytest.CaptureFixture[str]
) -> None:
    url = load().url("parts")

    def stop() -> None:
        if len(fakes.FakeEvaluator.asked) == 6:
            assert ask_to_stop(open_storage(url).engine, "small") == 1
            time.sleep(2.5)  # until it has beaten once more

    fakes.FakeEvaluator.before = stop
    first = search(load(), trials=14, out="parts")
    assert 1 <= len(first.trials) < 14
    assert first.failed == 0
    assert "sparsevit resume goes on" in capsys.readouterr().out
    assert load_results(load(), out="parts").trials_asked == 14
    assert all(one.confirmed is None for one in first.trials)
    fakes.FakeEvaluator.before = None
    assert configurations(search(load(), trials=14, out="parts")) == configurations(whole)
