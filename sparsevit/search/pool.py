"""Several worker processes on this machine: started, watched, and started again when they end before their time."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sparsevit.errors import UserError
from sparsevit.search.worker import is_stopped

POLL_S = 0.2
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
MOST_CRASHES = 6
"""A worker that ends so often without a trial being finished in between does not get another start."""

USER_ERROR = 2
"""Exit code of a worker whose user made a mistake: starting it again is of no use."""


class Process(Protocol):
    """What a pool needs of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...

    def send_signal(self, sig: int, /) -> None: ...

    def wait(self) -> int: ...


@dataclass
class _Place:
    """One worker of the pool, over all its lives."""

    process: Process | None
    crashes: int = 0
    finished_then: int = 0
    again_at: float = field(default=0.0)
    stopped_since: float | None = None


class Pool:
    """Keeps `count` workers going until each has ended by itself."""

    def __init__(self, start: Callable[[int], Process], count: int, log: Callable[[int], Path]) -> None:
        """See the class.

        Args:
            start: starts the worker of a rank.
            count: how many, with ranks from 0.
            log: the file that a worker writes to.
        """
        self._start, self._log = start, log
        self._places = [_Place(start(rank)) for rank in range(count)]

    @property
    def processes(self) -> list[int]:
        """Process numbers of the workers that live."""
        return [one.process.pid for one in self._places if one.process is not None]

    def run(
        self,
        *,
        finished: Callable[[], int],
        stopped: Callable[[], bool],
        stuck: Callable[[], set[int]],
        grace_s: float = math.inf,
    ) -> None:
        """Return when all workers have ended by themselves. However it ends, none is left.

        A worker that crashes starts again, ever later for as long as no trial is finished in between.

        Args:
            finished: how many trials are; called often.
            stopped: whether a worker that crashes is to stay away.
            stuck: process numbers of workers that live but give no sign, to be killed.
            grace_s: seconds after which a worker that was stopped by a signal is killed. It may hold a lock of the
                database, so that no sign of anybody can be read.

        Raises:
            UserError: if a worker says so, or crashes again and again.
        """
        try:
            while any(one.process is not None or one.again_at for one in self._places):
                self._look(finished(), stopped())
                for process in (stuck() | self._stopped(grace_s)) & set(self.processes):
                    os.kill(process, signal.SIGKILL)
                time.sleep(POLL_S)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Ask all workers to stop after the trial they are at, and wait; a second Ctrl-C does not."""
        living = [one.process for one in self._places if one.process is not None]
        try:
            for process in living:
                process.send_signal(signal.SIGTERM)
            for process in living:
                process.wait()
        except KeyboardInterrupt:
            for process in living:
                process.send_signal(signal.SIGKILL)
            for process in living:
                process.wait()
            raise

    def _stopped(self, grace_s: float) -> set[int]:
        """Process numbers of workers that were stopped by a signal for so long."""
        now, found = time.monotonic(), set()
        for place in self._places:
            if place.process is None or not is_stopped(place.process.pid):
                place.stopped_since = None
            elif place.stopped_since is None:
                place.stopped_since = now
            elif now - place.stopped_since > grace_s:
                found.add(place.process.pid)
        return found

    def _look(self, finished: int, stopped: bool) -> None:
        now = time.monotonic()
        for rank, place in enumerate(self._places):
            if place.process is None:
                if place.again_at and stopped:
                    place.again_at = 0.0
                elif place.again_at and now >= place.again_at:
                    place.process, place.again_at, place.finished_then = self._start(rank), 0.0, finished
                continue
            code = place.process.poll()
            if code is None:
                continue
            place.process = None
            if code == USER_ERROR:
                raise UserError(_last_line(self._log(rank)))
            if code != 0:
                place.crashes = 1 if finished > place.finished_then else place.crashes + 1
                if place.crashes == MOST_CRASHES:
                    raise UserError(
                        f"worker {rank} ended {MOST_CRASHES} times without a finished trial ({_ending(code)}): "
                        f"{self._log(rank)} says why"
                    )
                place.again_at = now + min(FIRST_WAIT_S * 2 ** (place.crashes - 1), LONGEST_WAIT_S)


def start_worker(arguments: Mapping[str, Any], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `supervised` with these arguments in a process of its own, which Ctrl-C does not reach."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparsevit.search.supervised"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin as stream:
        pickle.dump({**arguments, "parent": os.getpid()}, stream)
    return process


def share(count: int, *, gpus: Sequence[str], cpus: int) -> list[dict[str, str]]:
    """The environment of each of `count` workers: a GPU in turn, where there are any, and an equal part of the CPUs."""
    threads = {"OMP_NUM_THREADS": str(max(1, cpus // count))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[rank % len(gpus)]} if gpus else {}) for rank in range(count)]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "a worker ended without a word")
    return said.removeprefix("error: ")


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"
