"""Several worker processes on one study: the budget is exact, whoever is killed, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import optuna
import pytest

from sparsevit.errors import UserError
from sparsevit.search import pool as pool_module
from sparsevit.search.child import start_child
from sparsevit.search.interruption import uninterrupted
from sparsevit.search.pool import Pool, share
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import storage_at
from sparsevit.search.worker import workers_of

Load = Callable[..., StudySpec]


def check(spec: StudySpec, trials: int, kills: int) -> None:
    """No trial too many or too few, none stuck, none infeasible, and no accuracy paid twice but for those in flight."""
    with storage_at(spec.url()) as storage:
        study = optuna.load_study(study_name="small", storage=storage)
        found = study.get_trials(deepcopy=False)
        assert workers_of(storage.engine, "small") == []
    states = Counter(one.state.name for one in found)
    assert states["COMPLETE"] == trials
    assert states["RUNNING"] == 0
    assert states["FAIL"] <= kills
    complete = [one for one in found if one.state.name == "COMPLETE"]
    assert len({str(one.user_attrs["sparsity"]) for one in complete}) == trials
    for one in complete:
        assert all(value <= 0 for value in one.system_attrs["constraints"])
    assert sorted(one.number for one in found) == list(range(len(found)))
    lines = [line.split(maxsplit=2) for line in Path("evaluations.log").read_text().splitlines()]
    starts = Counter(what for kind, _, what in lines if kind == "start")
    assert sum(starts.values()) - len(starts) <= kills


def kill_workers(url: str, kills: int, rng: random.Random) -> threading.Thread:
    """Kills workers of the study one after the other, in a thread that has ended when all are killed."""
    parent = os.getpid()

    def run() -> None:
        done = 0
        while done < kills:
            time.sleep(0.2 + rng.random() / 2)
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            with storage_at(url) as storage:
                living = [int(one.worker.split(":")[1]) for one in workers_of(storage.engine, "small") if one.trial]
            mine = [process for process in living if str(process) in children]
            if mine:
                os.kill(rng.choice(mine), signal.SIGKILL)
                done += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_workers_that_are_killed_change_no_count(slow: Load, fakes: ModuleType) -> None:
    spec = slow()
    search(spec, trials=1)
    Path("evaluations.log").unlink()
    killer = kill_workers(spec.url(), 3, random.Random(0))
    results = search(spec, trials=30, workers=2)
    killer.join(0)
    assert not killer.is_alive()
    assert len(results.trials) == 30
    assert results.best is not None
    check(spec, 30, 3)


def test_workers_on_postgres(slow: Load, fakes: ModuleType, postgres: str) -> None:
    spec = slow(f"storage.url={postgres}")
    search(spec, trials=1)
    Path("evaluations.log").unlink()
    killer = kill_workers(spec.url(), 2, random.Random(1))
    results = search(spec, trials=24, workers=2)
    killer.join(0)
    assert not killer.is_alive()
    assert len(results.trials) == 24
    check(spec, 24, 2)


class Dies:
    """A worker that has ended already."""

    worker = "host:0"
    why = "0.log says why"

    def __init__(self, code: int, said: str = "") -> None:
        self._code, self._said = code, said

    def poll(self) -> int | None:
        return self._code

    def send_signal(self, sig: int, /) -> None:
        raise AssertionError("there is nobody")

    def wait(self) -> int:
        return self._code

    def last_line(self) -> str:
        return self._said


class Waits(Dies):
    """A worker for which there is no room."""

    worker = None  # type: ignore[assignment]
    _withdrawn = False

    def poll(self) -> int | None:
        return 0 if self._withdrawn else None

    def send_signal(self, sig: int, /) -> None:
        assert sig == signal.SIGTERM
        self._withdrawn = True


def run_pool(pool: Pool, finished: Callable[[], int] = lambda: 0) -> None:
    pool.run(finished=finished, stopped=lambda: False, stuck=set)


def test_a_worker_that_always_crashes_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "FIRST_WAIT_S", 0.001)
    starts: list[int] = []

    def start(rank: int) -> Dies:
        starts.append(rank)
        return Dies(-9)

    with pytest.raises(UserError, match="worker 0 ended 6 times without a finished trial") as caught:
        run_pool(Pool(start, 1))
    assert "signal 9" in str(caught.value)
    assert len(starts) == 6


def test_a_worker_that_makes_progress_starts_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(pool_module, "POLL_S", 0.002)
    starts: list[int] = []
    finished = iter(range(1000))

    def start(rank: int) -> Dies:
        starts.append(rank)
        return Dies(1 if len(starts) < 20 else 0)

    run_pool(Pool(start, 1), lambda: next(finished))
    assert len(starts) == 20


def test_the_users_mistake_is_handed_on_in_one_line(tmp_path: Path) -> None:
    module = tmp_path / "failing"  # takes the place of the package's own in the child
    (module / "sparsevit" / "search").mkdir(parents=True)
    for folder in ("sparsevit", "sparsevit/search"):
        (module / folder / "__init__.py").touch()
    (module / "sparsevit" / "search" / "supervised.py").write_text(
        "print('search: 3/7\\nerror: the device is gone\\n'); raise SystemExit(2)"
    )
    with pytest.raises(UserError, match=r"^the device is gone$"):
        run_pool(Pool(lambda rank: start_child({}, {"PYTHONPATH": str(module)}, tmp_path / "0.log", module), 1))


def test_a_worker_without_room_is_not_waited_for_once_the_others_are_done() -> None:
    run_pool(Pool(lambda rank: Waits(0) if rank else Dies(0), 3))


def test_a_worker_without_room_does_not_start_any_more_when_the_search_is_stopped() -> None:
    stopped = iter([False, False, True, True])
    Pool(lambda rank: Waits(0), 2).run(finished=lambda: 0, stopped=lambda: next(stopped), stuck=set)


def test_ctrl_c_leaves_no_look_at_the_database_half_done() -> None:
    """It would keep the database locked, and the workers that are waited for could not end."""
    looks: list[int] = []

    def finished() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        looks.append(1)
        return 0

    with pytest.raises(KeyboardInterrupt):
        run_pool(Pool(lambda rank: Waits(0), 1), finished)
    assert looks == [1]


def test_a_second_ctrl_c_does_not_wait() -> None:
    done: list[int] = []

    def work() -> None:
        with uninterrupted():
            for step in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(step)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [0]
    with uninterrupted(), uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_gpus_and_cpus_are_shared_out() -> None:
    shares = share(3, gpus=["2", "5"], cpus=8)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in shares] == ["2", "5", "2"]
    assert {one["OMP_NUM_THREADS"] for one in shares} == {"2"}
    assert share(4, gpus=[], cpus=2) == [{"OMP_NUM_THREADS": "1"}] * 4
