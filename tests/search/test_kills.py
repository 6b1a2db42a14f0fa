"""Searches whose processes are killed or stopped, and that go on: nothing twice, nothing lost, the same front."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest

from sparsevit.search.child import Child
from sparsevit.search.load import load_results
from sparsevit.search.pool import Pool
from sparsevit.search.results import StudyResults
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import storage_at
from sparsevit.search.worker import Watch

Load = Callable[..., StudySpec]

KILLS = (48, 51, 53, 68)
"""Begins and commits of transactions: opening a study takes 46 of them, and a trial seven."""

SEARCH = """
import sys
import sqlalchemy as sa
from sparsevit.search import run
from sparsevit.search.spec import StudySpec

function, trials, workers, grace_s, kill_at = sys.argv[1], *map(int, sys.argv[2:])
left = kill_at

def count(*_):
    global left
    left -= 1
    if left == 0:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

if kill_at:
    sa.event.listen(sa.Engine, "begin", count)
    sa.event.listen(sa.Engine, "commit", count)
spec = StudySpec.load("small.toml", ["supernet.evaluator=slow_fakes:evaluator"])
if function == "search":
    run.search(spec, trials=trials, workers=workers, grace_s=grace_s)
else:
    run.work(spec, trials=trials, grace_s=grace_s)
"""


@contextmanager
def started(
    function: str, trials: int, *, workers: int = 1, grace_s: int = 300, kill_at: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that searches; it is killed when it begins or commits that transaction, counted by both, if any."""
    words = (function, trials, workers, grace_s, kill_at)
    process = subprocess.Popen([sys.executable, "-c", SEARCH, *map(str, words)])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def lines() -> list[list[str]]:
    """The log of evaluations of trials: what, process, configuration."""
    log = Path("evaluations.log")
    return [line.split(maxsplit=2) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(what: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def check(spec: StudySpec, trials: int) -> Counter[str]:
    """No trial too many or too few, none stuck, none infeasible, none without an accuracy; how many in each state."""
    with storage_at(spec.url()) as storage:
        found = optuna.load_study(study_name="small", storage=storage).get_trials(deepcopy=False)
    states = Counter(one.state.name for one in found)
    assert states["COMPLETE"] == trials
    assert states["RUNNING"] == 0
    complete = [one for one in found if one.state.name == "COMPLETE"]
    assert len({one.user_attrs["sparsity"] for one in complete}) == trials
    assert all(value <= 0 for one in found for value in one.system_attrs["constraints"])
    return states


def front(results: StudyResults) -> list[tuple[str, float, float]]:
    return [(str(one.sparsity), one.accuracy["bbox_mAP"], one.predicted_ms) for one in results.front]


def test_a_search_that_is_killed_again_and_again_finds_the_same(
    slow: Load, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before transactions, and in them when all but the commit is done."""
    monkeypatch.setenv("SLOW_S", "0")
    spec = slow()
    whole = search(spec, trials=12, out="whole")
    search(spec, trials=1)
    Path("evaluations.log").unlink()
    for moment in KILLS:
        with started("search", 12, kill_at=moment) as process:
            assert process.wait() == -signal.SIGKILL
    assert 0 < len(load_results(spec).trials) < 12
    results = search(spec, trials=12)
    assert [str(one.sparsity) for one in results.trials] == [str(one.sparsity) for one in whole.trials]
    assert front(results) == front(whole)
    assert check(spec, 12)["FAIL"] <= 4
    again = Counter(sparsity for _, _, sparsity in lines())
    assert sum(again.values()) - len(again) <= 4


def test_a_parent_that_is_killed_takes_its_workers_along(slow: Load, fakes: ModuleType) -> None:
    spec = slow()
    search(spec, trials=1)
    Path("evaluations.log").unlink()
    with started("search", 24, workers=2) as parent:
        wait_for(lambda: len({process for _, process, _ in lines()}) == 2)
        parent.kill()
        parent.wait()
    workers = {int(process) for _, process, _ in lines()}
    results = search(spec, trials=24, workers=2)
    assert len(results.trials) == 24
    assert check(spec, 24)["FAIL"] <= 2
    again = Counter(sparsity for _, _, sparsity in lines())
    assert max(again.values()) == 1  # the orphans finished what they were at
    for worker in workers:
        wait_for(lambda worker=worker: not Path(f"/proc/{worker}").exists())


def test_a_worker_that_is_stopped_for_too_long_comes_too_late(
    slow: Load, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trial is done by others; what it brings afterwards is kept as an accuracy, and is no trial."""
    spec = slow()
    search(spec, trials=1)
    Path("evaluations.log").unlink()
    monkeypatch.setenv("SLOW_S", "1")
    with started("work", 12) as worker:
        wait_for(lines)
        os.kill(worker.pid, signal.SIGSTOP)
        monkeypatch.setenv("SLOW_S", "0")
        try:
            ((_, _, late),) = lines()
            known = {one for one in accuracies(spec) if one == late}
            assert not known
            search(spec, trials=12, grace_s=3)
            assert check(spec, 12) == {"COMPLETE": 12, "FAIL": 1}
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert worker.wait(120) == 0
    assert check(spec, 12) == {"COMPLETE": 12, "FAIL": 1}
    assert accuracies(spec).count(late) == 1


def accuracies(spec: StudySpec) -> list[str]:
    """Configurations whose accuracy on a trial's images the database knows."""
    with storage_at(spec.url()) as storage, storage.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT sparsity FROM sparsevit_accuracies WHERE images = 10")
        return [sparsity for (sparsity,) in rows]


def test_a_worker_of_a_pool_that_is_stopped_is_killed_and_started_again(tmp_path: Path) -> None:
    """Without a look at the database, which a worker may hold locked when it is stopped."""
    starts: list[subprocess.Popen[bytes]] = []

    def start(rank: int) -> Child:
        starts.append(subprocess.Popen(["sleep", "0.2" if starts else "600"]))
        return Child(starts[-1], tmp_path / f"{rank}.log")

    pool = Pool(start, 1)
    os.kill(starts[0].pid, signal.SIGSTOP)
    pool.run(finished=lambda: 0, stopped=lambda: False, stuck=set, grace_s=0.5)
    assert [one.returncode for one in starts] == [-signal.SIGKILL, 0]


def test_who_was_stopped_takes_nobody_for_dead() -> None:
    """All of a host's workers are suspended for an hour: the first one that goes on finds counters that stood still."""
    from sparsevit.search import worker

    now = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.time, "monotonic", lambda: now)
        presence = worker.Presence(None, "small", beat_s=2)  # type: ignore[arg-type] - it never beats
        watch = Watch(30, presence.clock)
        assert watch.look({"elsewhere:1": 5}, {"elsewhere:1"}) == set()
        now = 3600.0
        assert watch.look({"elsewhere:1": 5}, {"elsewhere:1"}) == set()
        for _ in range(20):  # others are dead, though, once this one was there for long enough
            now += 2
            presence._present = presence._present_until(now), now
        assert watch.look({"elsewhere:1": 5}, {"elsewhere:1"}) == {"elsewhere:1"}
