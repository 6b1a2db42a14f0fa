"""Several workers, wherever they run: started, watched, and started again when they end before their time."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparsevit.errors import UserError
from sparsevit.search.interruption import uninterrupted
from sparsevit.search.worker import is_stopped

POLL_S = 0.2
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
MOST_CRASHES = 6
"""A worker that ends so often without a trial being finished in between does not get another start."""

USER_ERROR = 2
"""Exit code of a worker whose user made a mistake: starting it again is of no use."""


class Process(Protocol):
    """The process of a worker."""

    @property
    def worker(self) -> str | None:
        """The worker's name in the database; `None` for as long as there is no room for it to start."""

    @property
    def why(self) -> str:
        """Once it has crashed: the reason, or where it stands."""

    def poll(self) -> int | None:
        """How it ended, as `subprocess.Popen` says it; `None` while it has not."""

    def send_signal(self, sig: int, /) -> None:
        """As of `subprocess.Popen`; one that has not started does not start any more, and ends with 0."""

    def wait(self) -> int: ...

    def last_line(self) -> str:
        """What it said last."""


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

    def __init__(self, start: Callable[[int], Process], count: int) -> None:
        """See the class.

        Args:
            start: starts the worker of a rank.
            count: how many, with ranks from 0.
        """
        self._start = start
        self._places = [_Place(start(rank)) for rank in range(count)]

    def run(
        self,
        *,
        finished: Callable[[], int],
        stopped: Callable[[], bool],
        stuck: Callable[[], set[str]],
        grace_s: float = math.inf,
    ) -> None:
        """Return when all workers have ended by themselves. However it ends, none is left.

        A worker that crashes starts again, ever later for as long as no trial is finished in between.

        Args:
            finished: how many trials are; called often.
            stopped: whether a worker that crashes is to stay away.
            stuck: names of workers that live but give no sign; those of the pool are killed.
            grace_s: seconds after which a worker that was stopped by a signal is killed. It may hold a lock of the
                database, so that no sign of anybody can be read.

        Raises:
            UserError: if a worker says so, or crashes again and again.
        """
        try:
            while any(one.process is not None or one.again_at for one in self._places):
                with uninterrupted():
                    self._look(finished(), stopped())
                    self._kill(stuck() | self._stopped(grace_s))
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

    def _stopped(self, grace_s: float) -> set[str]:
        """Names of workers that were stopped by a signal for so long."""
        now, found = time.monotonic(), set()
        for place in self._places:
            worker = None if place.process is None else place.process.worker
            if worker is None or not is_stopped(worker):
                place.stopped_since = None
            elif place.stopped_since is None:
                place.stopped_since = now
            elif now - place.stopped_since > grace_s:
                found.add(worker)
        return found

    def _kill(self, workers: set[str]) -> None:
        for place in self._places:
            if place.process is not None and place.process.worker in workers:
                place.process.send_signal(signal.SIGKILL)

    def _withdraw(self, stopped: bool) -> None:
        """Let no worker start that there was no room for so far, if there is nothing left for it to do."""
        processes = [one.process for one in self._places if one.process is not None]
        waiting = [one for one in processes if one.worker is None]
        busy = len(waiting) < len(processes) or any(one.again_at for one in self._places)
        if stopped or (len(processes) < len(self._places) and not busy):
            for process in waiting:
                process.send_signal(signal.SIGTERM)

    def _look(self, finished: int, stopped: bool) -> None:
        self._withdraw(stopped)
        now = time.monotonic()
        for rank, place in enumerate(self._places):
            if place.process is None:
                if place.again_at and stopped:
                    place.again_at = 0.0
                elif place.again_at and now >= place.again_at:
                    place.process, place.again_at, place.finished_then = self._start(rank), 0.0, finished
                continue
            process, code = place.process, place.process.poll()
            if code is None:
                continue
            place.process = None
            if code == USER_ERROR:
                raise UserError(process.last_line())
            if code != 0:
                place.crashes = 1 if finished > place.finished_then else place.crashes + 1
                if place.crashes == MOST_CRASHES:
                    raise UserError(
                        f"worker {rank} ended {MOST_CRASHES} times without a finished trial ({_ending(code)}): "
                        f"{process.why}"
                    )
                place.again_at = now + min(FIRST_WAIT_S * 2 ** (place.crashes - 1), LONGEST_WAIT_S)


def share(count: int, *, gpus: Sequence[str], cpus: int) -> list[dict[str, str]]:
    """The environment of each of `count` workers: a GPU in turn, where there are any, and an equal part of the CPUs."""
    threads = {"OMP_NUM_THREADS": str(max(1, cpus // count))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[rank % len(gpus)]} if gpus else {}) for rank in range(count)]


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"
