"""Workers on a real Ray cluster of two nodes on this machine: exact budgets, lost workers and nodes, and refusals."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsevit
from sparsevit.cli import app as cli
from sparsevit.errors import UserError
from sparsevit.search import ray_pool
from sparsevit.search.ray_pool import RayWorker, cpus_each, refuse_others
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import storage_at
from sparsevit.search.worker import workers_of

Load = Callable[..., StudySpec]
EVALUATOR, URL = "supernet.evaluator=ray_fakes:evaluator", "storage.url=sqlite:///${TRIALS_FILE}"
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")

FAKES = f"""
import os, sys, time
sys.path.append({str(Path(__file__).parent)!r})
from search_fakes import FakeEvaluator

class Slow(FakeEvaluator):
    def accuracy(self, sparsity, *, images=None, **rest):
        if images == 10:  # a trial's
            with open("evaluations.log", "a") as log:
                log.write(f"{{os.getpid()}} {{os.environ['OMP_NUM_THREADS']}} {{sparsity}}\\n")
            time.sleep(0.2)
        return super().accuracy(sparsity, images=images, **rest)

def evaluator(*, config=None, checkpoint="builtin", flavour="plain", device, dtype):
    return Slow(config, checkpoint, flavour, device, dtype)
"""


@dataclass
class Nodes:
    """A Ray cluster of nodes with one CPU each."""

    folder: Path
    port: int
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{socket.gethostbyname(socket.gethostname())}:{self.port}"

    def add(self) -> None:
        """Start one more node, and return when it is up."""
        role = [f"--address=127.0.0.1:{self.port}"]
        if not self.processes:
            role = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        command = [Path(sys.executable).parent / "ray", "start", *role, "--num-cpus=1", "--num-gpus=0", "--block"]
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--object-store-memory=80000000", "--disable-usage-stats"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        self.processes.append(process)
        while b"Ray runtime started" not in Path(log.name).read_bytes():
            assert process.poll() is None, Path(log.name).read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster of two nodes, which wants a token and makes nothing of its own in the home or in /tmp/ray."""
    folder = Path("/tmp") / f"sv-ray-{os.getpid()}"  # short: sockets lie in it
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    packages = [str(Path(sparsevit.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
        "PYTHONPATH": os.pathsep.join(packages),
    }
    found = Nodes(folder, port, environment)
    try:
        found.add()
        found.add()
        yield found
    finally:
        for process in found.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for _ in range(50):  # what its last processes write as they end comes late
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.2)


@pytest.fixture
def ray_load(load: Load, tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Studies whose evaluations take a while and are written to a log, from a process that knows the token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, nodes.environment[name])
    (tmp_path / "ray_fakes.py").write_text(FAKES)
    return lambda *more: load(EVALUATOR, *more)


def evaluations() -> list[list[str]]:
    """Process, threads and sparsity of each evaluation for a trial."""
    path = Path("evaluations.log")
    return [line.split(maxsplit=2) for line in path.read_text().splitlines()] if path.exists() else []


def once(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """A thread that does something as soon as a condition holds."""

    def run() -> None:
        while not condition():
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def states(spec: StudySpec) -> Counter[str]:
    with storage_at(spec.url()) as storage:
        study = optuna.load_study(study_name="small", storage=storage)
        assert workers_of(storage.engine, "small") == []
        return Counter(one.state.name for one in study.get_trials(deepcopy=False))


@with_ray
def test_interrupted_searches_lost_workers_and_lost_nodes_change_no_count(
    ray_load: Load, nodes: Nodes, fakes: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIALS_FILE", "trials.db")  # which the nodes do not know
    spec = ray_load(URL)
    words = ["search", "small.toml", "--set", EVALUATOR, "--set", URL, "--workers", "2", "--ray", nodes.address]
    once(lambda: len(evaluations()) >= 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 130
    out, err = capfd.readouterr()
    assert "2 workers, whose logs are in runs/small/workers, each on its machine of the Ray cluster\n" in out
    assert err == "interrupted\n"
    before = states(spec)
    assert before == {"COMPLETE": len(evaluations())}  # what was at work was finished
    assert before["COMPLETE"] < 24

    first = once(lambda: len(evaluations()) >= before["COMPLETE"] + 2, lambda: kill(int(evaluations()[-1][0])))
    second = once(lambda: len(evaluations()) >= before["COMPLETE"] + 6, lambda: kill(-nodes.processes[1].pid))
    results = search(spec, trials=24, workers=2, ray=nodes.address)
    for thread in (first, second):
        thread.join(0)
        assert not thread.is_alive()
    assert len(results.trials) == 24
    assert results.best is not None
    found = states(spec)
    assert found["COMPLETE"] == 24
    assert found["RUNNING"] == 0
    assert found["FAIL"] <= 2
    paid = Counter(sparsity for _, _, sparsity in evaluations())
    assert sum(paid.values()) - len(paid) <= 2
    assert {threads for _, threads, _ in evaluations()} == {"1"}
    assert sorted(os.listdir("runs/small/workers")) == ["0.log", "1.log"]
    assert capfd.readouterr().err == ""  # nor does Ray say anything


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


@with_ray
def test_a_cluster_that_is_not_there_is_said_soon(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_pool, "CONNECT_S", 3.0)
    with socket.socket() as silent:  # a port that takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            search(load(), ray=address)
    assert time.monotonic() - start < 30
    said = str(caught.value)
    assert said.startswith(
        f"there is no Ray cluster at {address} that this machine is part of (no answer within 3 s): "
    )
    assert "ray start --address HOST:PORT joins it" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["local", "ray://head:10001", "head", "head:", ":6379", "head:port", "", "a b:1"])
def test_an_address_that_is_none(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    for command in ("search", "resume") if address == "local" else ("search",):
        if command == "resume":
            search(StudySpec.load(study_file), trials=1)
            capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([command, str(study_file), "--ray", address])
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: --ray {address}: write auto, or HOST:PORT of the head of a Ray cluster")
        assert err.count("\n") == 1
        assert (tmp_path / "runs").exists() is (command == "resume")


def test_without_ray_its_extra_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--ray needs the extra 'ray': pip install 'sparsevit\[ray\]'$"):
        search(load(), ray="auto")


def test_a_worker_without_room_says_so_once_and_can_be_withdrawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[str] = []
    full = SimpleNamespace(wait=lambda references, timeout: ([], references), kill=killed.append)
    monkeypatch.setattr(ray_pool, "_ray", lambda: full)
    monkeypatch.setattr(ray_pool, "WAIT_SAID_S", 0.0)
    worker = RayWorker("an actor", "its beginning", "worker 3 waits until the Ray cluster has a CPU free")
    assert [worker.poll() for _ in range(3)] == [None] * 3
    assert capsys.readouterr().out == "worker 3 waits until the Ray cluster has a CPU free\n"
    assert worker.worker is None
    worker.send_signal(signal.SIGTERM)
    assert killed == ["an actor"]
    assert worker.poll() == worker.wait() == 0


def test_machines_without_this_version_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        ray_pool._Host().begin("0.0.1", b"", {}, "0.log", "")
    here = f"{socket.gethostname()} has sparsevit {sparsevit.__version__}"
    assert str(caught.value) == f"{here}: install 0.0.1 there, as here"
    said = (
        "The actor died because of an error raised in its creation task, ray::_Host.__init__() (pid=16841, "
        "ip=192.0.2.2, actor_id=5e4b)\nRuntimeError: The actor with name _Host failed to import on the worker.\n"
        "ModuleNotFoundError: No module named 'sparsevit'"
    )
    assert ray_pool._not_there(said) == (
        "the machine 192.0.2.2 of the Ray cluster cannot load sparsevit (No module named 'sparsevit'): "
        f"install sparsevit {sparsevit.__version__} there, as here"
    )


def node(host: str, address: str, *, cpus: float = 4.0, alive: bool = True) -> dict[str, object]:
    return {"NodeManagerHostname": host, "NodeManagerAddress": address, "Alive": alive, "Resources": {"CPU": cpus}}


def test_a_sqlite_file_is_for_one_machine(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    here = [node("one", "10.0.0.1"), node("one", "10.0.0.1")]
    refuse_others(file, here, "10.0.0.1")
    refuse_others(file, [*here, node("gone", "10.0.0.2", alive=False), node("head", "10.0.0.3", cpus=0)], "10.0.0.1")
    with pytest.raises(UserError) as caught:
        refuse_others(file, [*here, node("two", "10.0.0.2"), node("three", "10.0.0.3")], "10.0.0.1")
    said = str(caught.value)
    assert said.startswith(
        f"the database {file} is a file of this machine, which three, two of the Ray cluster cannot share"
    )
    assert "postgresql+psycopg://" in said


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), max_size=6), st.integers(1, 40))
def test_workers_get_as_many_cpus_as_lets_all_of_them_start(rooms: list[tuple[int, int]], count: int) -> None:
    def starting(cpus: int) -> int:
        return sum(min(most, own // cpus) for own, most in rooms)

    cpus = cpus_each(rooms, count)
    assert cpus >= 1
    assert starting(cpus + 1) < count
    if starting(1) >= count:
        assert starting(cpus) >= count
    else:
        assert cpus == 1
