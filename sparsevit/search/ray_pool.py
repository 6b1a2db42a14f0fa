"""Workers as actors of a Ray cluster: each runs the process of a local pool's worker, on whichever machine has room.

Ray finds the machine and says when it is lost. Starting again, and what that may cost, are the pool's.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsevit import __version__
from sparsevit.console import console
from sparsevit.errors import MissingExtraError, UserError, first_line
from sparsevit.search.child import Child, start_child
from sparsevit.search.interruption import uninterrupted
from sparsevit.search.pool import POLL_S, USER_ERROR
from sparsevit.search.storage import check_storage, sqlite_file

CONNECT_S = 30.0
"""A cluster that does not answer within so many seconds is not there."""

WAIT_SAID_S = 20.0
"""A worker for which there was no room for so long says so."""

LOST = -signal.SIGKILL
"""How a worker ended whose actor was lost."""

_ADDRESS = re.compile(r"auto|[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}")
_PROBE = "import logging, sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)"


class Cluster:
    """A Ray cluster that this process is connected to, from `with` to its end."""

    def __init__(self, address: str, url: str) -> None:
        """See the class; connects to nothing yet.

        Args:
            address: `auto` for the cluster that this machine is part of, or `host:port` of its head.
            url: of the study's database.

        Raises:
            UserError: if the address is none, or Ray is not installed.
        """
        if not _ADDRESS.fullmatch(address):
            raise UserError(
                f"--ray {address}: write auto, or HOST:PORT of the head of a Ray cluster that this machine has joined"
            )
        if find_spec("ray") is None:
            raise MissingExtraError("--ray", "ray")
        self._address, self._url = address, url

    def __enter__(self) -> Cluster:
        """Connect.

        Raises:
            UserError: if there is no such cluster, or its machines cannot share the study's database.
        """
        _probe(self._address)
        self._file = sqlite_file(check_storage(self._url))
        with uninterrupted():
            ray = _ray()
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.CRITICAL)
            try:
                self._here = ray.util.get_node_ip_address()
                if self._file is not None:
                    refuse_others(self._file, ray.nodes(), self._here)
            except BaseException:
                ray.shutdown()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with uninterrupted():
            _ray().shutdown()

    def starter(
        self, count: int, *, gpu: bool, environment: Mapping[str, str], log: Callable[[int], Path]
    ) -> Callable[[int, Mapping[str, Any]], RayWorker]:
        """What starts the worker of a rank with the arguments of `run.work`.

        Args:
            count: how many workers there are to be.
            gpu: whether each needs a GPU.
            environment: variables that each is given.
            log: the file that a worker writes to, on its own machine.
        """
        ray = _ray()
        cpus = cpus_each(_rooms(ray.nodes(), gpu), count)
        needs: dict[str, Any] = {"num_cpus": cpus, "num_gpus": int(gpu)}
        if self._file is not None:  # machines that join later do not have the file either
            needs["resources"] = {f"node:{self._here}": 0.001}
        environment = {"OMP_NUM_THREADS": str(cpus), **environment}
        # Two at once: a signal arrives while the end is awaited.
        host = ray.remote(_Host).options(max_concurrency=2, max_restarts=0, **needs)
        room = "a GPU and " * gpu + ("a CPU" if cpus == 1 else f"{cpus} CPUs")

        @uninterrupted()
        def start(rank: int, arguments: Mapping[str, Any]) -> RayWorker:
            actor = host.remote()
            sent = pickle.dumps(dict(arguments))
            began = actor.begin.remote(__version__, sent, environment, str(log(rank)), os.getcwd())
            return RayWorker(actor, began, f"worker {rank} waits until the Ray cluster has {room} free")

        return start


class RayWorker:
    """A worker on some machine of the cluster: what `pool.Process` asks for."""

    def __init__(self, actor: Any, began: Any, waits: str) -> None:
        self._actor, self._reference = actor, began
        self._waits, self._say_at = waits, time.monotonic() + WAIT_SAID_S
        self._code: int | None = None
        self._said = ""
        self.worker: str | None = None
        self.why = ""

    def poll(self) -> int | None:
        self._look(0.0)
        if self._code is None and self.worker is None and time.monotonic() > self._say_at:
            console.print(self._waits, markup=False)
            self._say_at = float("inf")
        return self._code

    @uninterrupted()
    def send_signal(self, sig: int, /) -> None:
        self._look(0.0)
        if self._code is None and self.worker is None:
            self._code = 0
            _ray().kill(self._actor)
        elif self._code is None:
            self._actor.signal.remote(sig)

    def wait(self) -> int:
        while self._code is None:
            self._look(POLL_S)
        return self._code

    def last_line(self) -> str:
        return self._said

    @uninterrupted()
    def _look(self, seconds: float) -> None:
        """Take in what is next in its life, its beginning and then its end, if that comes within so long."""
        ray = _ray()
        if self._code is not None or not ray.wait([self._reference], timeout=seconds)[0]:
            return
        try:
            if self.worker is None:
                self.worker, self.why = ray.get(self._reference)
                self._reference = self._actor.end.remote()
                return
            self._code, self._said = ray.get(self._reference)
            self._said += f" (on {self._host})"
        except ray.exceptions.RayTaskError as error:  # it could not begin
            cause = error.cause if isinstance(error.cause, Exception) else error
            self._code, self._said = USER_ERROR, str(cause) if isinstance(cause, UserError) else first_line(cause)
        except ray.exceptions.RayError as error:
            if "failed to import" in str(error):
                self._code, self._said = USER_ERROR, _not_there(str(error))
            else:
                self._code, self.why = LOST, f"Ray says {first_line(error)}"
        ray.kill(self._actor)  # what it held is free for others

    @property
    def _host(self) -> str:
        return (self.worker or "").partition(":")[0]


class _Host:
    """On a machine of the cluster: starts one worker, hands signals on, and says how it ended."""

    _child: Child

    def begin(
        self, version: str, arguments: bytes, environment: dict[str, str], log: str, folder: str
    ) -> tuple[str | None, str]:
        """Start it; its name, and where its log lies. It runs in the same folder as the search, if there is one."""
        if version != __version__:
            raise UserError(f"{socket.gethostname()} has sparsevit {__version__}: install {version} there, as here")
        here = Path(folder) if Path(folder).is_dir() else Path.cwd()
        self._child = start_child(pickle.loads(arguments), environment, here / log, here)
        return self._child.worker, f"{self._child.why} (on {socket.gethostname()})"

    def end(self) -> tuple[int, str]:
        """How it ended, once it has, and what it said last."""
        return self._child.wait(), self._child.last_line()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._child.send_signal(number)


def _ray() -> Any:
    """The package, which takes a while to import and is only half typed."""
    import ray

    return ray


def cpus_each(rooms: Sequence[tuple[int, int]], count: int) -> int:
    """The most CPUs that each of `count` workers can have, at least one, if no machine may take more than its part.

    Args:
        rooms: of each machine its CPUs, and how many workers it may take at most.
        count: of workers. Where there is no room for so many with one CPU each, some have to wait.
    """
    for cpus in range(max((one for one, _ in rooms), default=1), 1, -1):
        if sum(min(most, own // cpus) for own, most in rooms) >= count:
            return cpus
    return 1


def refuse_others(file: Path, nodes: Sequence[Mapping[str, Any]], here: str) -> None:
    """Raise a `UserError` if machines other than that of the address `here` could work on a SQLite file."""
    others = {str(one["NodeManagerHostname"]) for one in nodes if _cpus(one) and one["NodeManagerAddress"] != here}
    if others:
        raise UserError(
            f"the database {file} is a file of this machine, which {', '.join(sorted(others))} of the Ray cluster "
            "cannot share: set storage.url to PostgreSQL, as postgresql+psycopg://user@host/name"
        )


def _rooms(nodes: Sequence[Mapping[str, Any]], gpu: bool) -> list[tuple[int, int]]:
    rooms = [(_cpus(one), int(one["Resources"].get("GPU", 0))) for one in nodes]
    return [(cpus, gpus if gpu else cpus) for cpus, gpus in rooms]


def _cpus(node: Mapping[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0


def _not_there(said: str) -> str:
    """What Ray's word for an actor whose class cannot be loaded means."""
    where = re.search(r"\bip=([^\s,)]+)", said)
    module = re.search(r"No module named \S+", said)
    return (
        f"the machine {where[1] if where else ''} of the Ray cluster cannot load sparsevit "
        f"({module[0] if module else 'it fails to import'}): install sparsevit {__version__} there, as here"
    )


def _probe(address: str) -> None:
    """Connect from another process first: where there is no cluster, Ray tries for minutes, or ends its process."""
    command = [sys.executable, "-c", _PROBE, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_S, check=False)
    except subprocess.TimeoutExpired as expired:
        output = expired.stderr or b""
        said, reason = output.decode(errors="replace"), f"no answer within {CONNECT_S:.0f} s"
    else:
        if done.returncode == 0:
            return
        said = done.stderr
        reason = next((line for line in reversed(said.splitlines()) if line.strip()), f"exit code {done.returncode}")
    if "InvalidAuthToken" in said:
        raise UserError(
            f"the Ray cluster at {address} asks for a token: export RAY_AUTH_MODE=token, with the token in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    raise UserError(
        f"there is no Ray cluster at {address} that this machine is part of ({reason}): ray start --head makes one, "
        "ray start --address HOST:PORT joins it"
    )
