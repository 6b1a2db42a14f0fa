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
from types import ModuleType

import optuna
import pytest

import sparsevit
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import storage_at
from sparsevit.search.worker import workers_of

Load = Callable[..., StudySpec]
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
        shutil.rmtree(folder, ignore_errors=True)  # what its last processes still hold goes with them


@pytest.fixture
def ray_load(load: Load, tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Studies whose evaluations take a while and are written to a log, from a process that knows the token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, nodes.environment[name])
    (tmp_path / "ray_fakes.py").write_text(FAKES)
    return lambda *more: load("supernet.evaluator=ray_fakes:evaluator", *more)


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
def test_lost_workers_and_nodes_change_no_count(
    ray_load: Load, nodes: Nodes, fakes: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = ray_load()

    def kill_worker() -> None:
        os.kill(int(evaluations()[-1][0]), signal.SIGKILL)

    def kill_node() -> None:
        os.killpg(nodes.processes[1].pid, signal.SIGKILL)

    first = once(lambda: len(evaluations()) >= 4, kill_worker)
    second = once(lambda: len(evaluations()) >= 9, kill_node)
    results = search(spec, trials=24, workers=2, ray=nodes.address)
    first.join(0)
    second.join(0)
    assert not first.is_alive()
    assert not second.is_alive()
    assert len(results.trials) == 24
    assert results.best is not None
    found = states(spec)
    assert found["COMPLETE"] == 24
    assert found["RUNNING"] == 0
    assert found["FAIL"] <= 2
    paid = Counter(sparsity for _, _, sparsity in evaluations())
    assert sum(paid.values()) - len(paid) <= 2
    assert {threads for _, threads, _ in evaluations()} == {"1"}
    out, err = capfd.readouterr()
    assert "2 workers, whose logs are in runs/small/workers, each on its machine of the Ray cluster\n" in out
    assert err == ""
    assert sorted(os.listdir("runs/small/workers")) == ["0.log", "1.log"]
