"""A database that goes away, fails to commit or has no room, while a search goes on in it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from sparsevit.cli.app import main
from sparsevit.errors import UserError
from sparsevit.search import patience
from sparsevit.search.load import load_results
from sparsevit.search.results import StudyResults
from sparsevit.search.run import search, work
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import storage_at

Load = Callable[..., StudySpec]


def found(results: StudyResults) -> list[tuple[str, float, float]]:
    return [(str(one.sparsity), one.accuracy["bbox_mAP"], one.predicted_ms) for one in results.trials]


def paid(fakes: ModuleType) -> list[Any]:
    """What was evaluated for trials, in order."""
    return [one.kept(fakes.WINDOWS) for one, count in fakes.FakeEvaluator.asked if count == 10]


def states(url: str) -> Counter[str]:
    with storage_at(url) as storage:
        study = optuna.load_study(study_name="small", storage=storage)
        return Counter(one.state.name for one in study.get_trials(deepcopy=False))


@pytest.fixture
def whole(load: Load, fakes: ModuleType) -> StudyResults:
    """The study as it is without a fault."""
    results = search(load(), trials=10, out="whole")
    fakes.FakeEvaluator.asked.clear()
    return results


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_postgresql_restarted_while_searching(
    load: Load,
    fakes: ModuleType,
    whole: StudyResults,
    postgres_server: Any,
    postgres: str,
    mode: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is away for a while at every third evaluation: the search goes on by itself."""
    timers = []

    def restart() -> None:
        if len(fakes.FakeEvaluator.asked) % 3 == 0:
            postgres_server.stop(mode)
            timers.append(threading.Timer(0.5, postgres_server.start))
            timers[-1].start()

    fakes.FakeEvaluator.before = restart
    try:
        results = search(load(f"storage.url={postgres}"), trials=10)
    finally:
        for timer in timers:
            timer.join()
    assert len(timers) >= 4
    assert "the database fails" in capsys.readouterr().out
    assert found(results) == found(whole)
    assert results.failed == 0
    assert len(paid(fakes)) == len(set(paid(fakes))) == 10
    assert states(postgres) == {"COMPLETE": 10}


def test_postgresql_restarted_under_several_workers(
    slow: Load, fakes: ModuleType, postgres_server: Any, postgres: str
) -> None:
    spec = slow(f"storage.url={postgres}")
    search(spec, trials=1)
    Path("evaluations.log").unlink()

    def restart() -> None:
        while not Path("evaluations.log").exists():
            threading.Event().wait(0.05)
        for mode in ("immediate", "fast"):
            postgres_server.stop(mode)
            postgres_server.start()
            threading.Event().wait(0.3)

    restarting = threading.Thread(target=restart)
    restarting.start()
    results = search(spec, trials=30, workers=2)
    restarting.join()
    assert len(results.trials) == 30
    counts = states(postgres)
    assert counts["COMPLETE"] == 30
    assert counts["RUNNING"] == 0
    evaluated = Counter(line.split(maxsplit=2)[2] for line in Path("evaluations.log").read_text().splitlines())
    assert max(evaluated.values()) == 1


def test_a_worker_of_a_pool_waits_for_a_database_that_is_away(
    load: Load, fakes: ModuleType, postgres_server: Any, postgres: str
) -> None:
    spec = load(f"storage.url={postgres}")
    search(spec, trials=2)
    postgres_server.stop("fast")
    starting = threading.Timer(1.0, postgres_server.start)
    starting.start()
    try:
        with pytest.raises(UserError, match="cannot open the database"):
            work(spec, trials=4)
        work(spec, trials=4, waiting=True)
    finally:
        starting.join()
    assert states(postgres) == {"COMPLETE": 4}


@pytest.mark.parametrize("done", [False, True])
def test_commits_that_fail(
    load: Load, fakes: ModuleType, whole: StudyResults, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of those of a search that was opened: before they are done, or after, when nobody knows."""
    chance, commits = random.Random(0), 0

    def fail(connection: sa.Connection) -> None:
        nonlocal commits
        commits += 1
        if chance.random() < 1 / 3:
            if done:
                connection.connection.commit()
            raise sa.exc.OperationalError("COMMIT", {}, Exception("the line is cut"))

    def begin() -> None:
        fakes.FakeEvaluator.before = None
        sa.event.listen(sa.Engine, "commit", fail)

    monkeypatch.setattr(patience, "sleep", lambda seconds: None)
    search(load(), trials=1, out="parts")
    fakes.FakeEvaluator.before = begin
    try:
        results = search(load(), trials=10, out="parts")
    finally:
        sa.event.remove(sa.Engine, "commit", fail)
    assert commits > 20
    assert found(results) == found(whole)
    assert len(paid(fakes)) == len(set(paid(fakes))) == 10
    counts = states(load().url("parts"))
    assert counts["COMPLETE"] == 10
    assert counts["RUNNING"] == 0
    if not done:
        assert counts["FAIL"] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with hardly more room than a database takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root may mount a file system")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Take all room that is left."""
    with (folder / "ballast").open("ab", buffering=0) as ballast:
        block = 1 << 16
        while block:
            try:
                ballast.write(bytes(block))
            except OSError:
                block //= 2


@pytest.mark.parametrize("at", [0, 1, 7, 13])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    load: Load,
    study_file: Path,
    fakes: ModuleType,
    whole: StudyResults,
    small_disk: Path,
    at: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full before the search begins, at its first evaluation, among trials, and when it confirms."""

    def full() -> None:
        if len(fakes.FakeEvaluator.asked) == at:
            fill(small_disk)

    monkeypatch.setattr(patience, "PATIENCE_S", 0.3)
    if at == 0:
        fill(small_disk)
    fakes.FakeEvaluator.before = full
    typed = ["search", str(study_file), "--trials", "10", "--out", str(small_disk / "run")]
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "full" in said.err or "No space left" in said.err or "no space left" in said.err
    fakes.FakeEvaluator.before = None
    (small_disk / "ballast").unlink()
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code == 0
    results = load_results(load(), out=small_disk / "run")
    assert found(results) == found(whole)
    assert len(paid(fakes)) - len(set(paid(fakes))) <= 1
    assert states(load().url(small_disk / "run"))["RUNNING"] == 0
    assert list(small_disk.rglob("*.part")) == []
