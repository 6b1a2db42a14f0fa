"""Who works on a study: every worker's name, its sign of life in the database, and who has ended.

Whether a worker lives is never read from a clock on the wall, which may be set back: on this host its process tells,
and anywhere a counter that it moves, watched for as long as the one who watches moves its own.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from sparsevit.search.patience import AWAY, patiently
from sparsevit.search.tables import workers

WORKER = "worker"
"""User attribute of a trial: `host:process:namespace:start` of the process that is or was at it."""

BEAT_S = 2.0
"""A worker moves its counter this often."""

GRACE_S = 300.0
"""A worker whose counter stood still for so long counts as dead."""


def this_worker() -> str:
    return worker_name(os.getpid())


def worker_name(process: int) -> str:
    """What a worker in that process of this host calls itself."""
    return f"{socket.gethostname()}:{process}:{_namespace()}:{_start(process)}"


def worker_label(worker: str) -> str:
    """`host:process`, for people."""
    return ":".join(worker.split(":")[:2])


def is_dead(worker: str) -> bool:
    """Whether the process of a worker has ended, as far as this process can see: another host's or container's never.

    The time it started tells a process from a later one of the same number.
    """
    process, start = _seen(worker)
    if process is None:
        return False
    found = _start(process)
    return found is None or (start is not None and found != start)


def is_stopped(worker: str) -> bool:
    """Whether a worker was stopped by a signal, so that it does nothing at all, as far as this process can see."""
    process, _ = _seen(worker)
    return process is not None and (_stat(process) or ["X"])[0] == "T"


def _seen(worker: str) -> tuple[int | None, str | None]:
    """The process of a worker, if this one can see it, and when that started, if its name says so."""
    host, _, numbers = worker.partition(":")
    process, *rest = numbers.split(":")
    if host != socket.gethostname() or not process.isdigit():
        return None, None
    namespace, start = rest if len(rest) == 2 else (_namespace(), None)
    return (int(process) if namespace == _namespace() else None), start


class Presence:
    """A worker's row in the table of workers, from `with` to its end: it beats, and says when the worker is to stop."""

    def __init__(self, engine: Engine, study: str, *, beat_s: float = BEAT_S) -> None:
        self._engine, self._study, self._beat_s = engine, study, beat_s
        self._worker = this_worker()
        self._present = 0.0, time.monotonic()  # seconds present until the last beat, and when that was
        self._stop, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beats, name="presence", daemon=True)

    @property
    def stopped(self) -> bool:
        """Whether this worker was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def clock(self) -> float:
        """Seconds that this worker was present: it stands still while the process or the database does.

        So a worker that was stopped, or waited for the database, takes nobody for dead who did the same.
        """
        return self._present_until(time.monotonic())

    def __enter__(self) -> Presence:
        patiently(self._appear)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        with suppress(*AWAY), self._engine.begin() as connection:
            connection.execute(workers.delete().where(workers.c.worker == self._worker))

    def _beats(self) -> None:
        while not self._end.wait(self._beat_s):
            with suppress(*AWAY):  # a database that is away comes back, and then this one is still here
                self._beat()
                now = time.monotonic()
                self._present = self._present_until(now), now

    def _present_until(self, now: float) -> float:
        before, since = self._present
        return before + min(now - since, 2 * self._beat_s)

    def _appear(self) -> None:
        with self._engine.begin() as connection:
            dead = [one for (one,) in connection.execute(sa.select(workers.c.worker)) if is_dead(one)]
            connection.execute(workers.delete().where(workers.c.worker.in_(dead)))
            self._insert(connection)

    def _beat(self) -> None:
        mine = workers.c.worker == self._worker
        with self._engine.begin() as connection:
            moved = connection.execute(workers.update().where(mine).values(beat=workers.c.beat + 1, seen=_now()))
            if not moved.rowcount:  # somebody took this worker for dead
                self._insert(connection)
            elif connection.execute(sa.select(workers.c.stop).where(mine)).scalar():
                self._stop.set()

    def _insert(self, connection: sa.Connection) -> None:
        connection.execute(workers.delete().where(workers.c.worker == self._worker))
        row = {
            "worker": self._worker,
            "study": self._study,
            "beat": 0,
            "stop": False,
            "started": _now(),
            "seen": _now(),
        }
        connection.execute(workers.insert().values(row))


@dataclass
class Watch:
    """Tells which workers have ended: by their process on this host, else by a counter that stands still.

    Attributes:
        grace_s: for how long a counter may stand still.
        clock: seconds that never run backward; a worker's own `Presence.clock` is best.
    """

    grace_s: float = GRACE_S
    clock: Callable[[], float] = time.monotonic
    _moved: dict[str, tuple[int | None, float]] = field(default_factory=dict)

    def look(self, beats: Mapping[str, int], wanted: set[str]) -> set[str]:
        """Those of the workers `wanted` that have ended, given the counters of all; one without a counter stands still.

        Call it again and again: a counter stands still between two looks.
        """
        now = self.clock()
        dead = set()
        for worker in wanted:
            beat = beats.get(worker)
            before, since = self._moved.get(worker, (beat, now))
            if before != beat:
                since = now
            self._moved[worker] = beat, since
            if is_dead(worker) or now - since > self.grace_s:
                dead.add(worker)
        return dead


@dataclass(frozen=True)
class Seen:
    """A worker as the database has it.

    Attributes:
        worker: its name.
        started: UTC, by its host's clock; likewise `seen`, when it beat last.
        stopping: whether it was asked to stop.
        trial: the number of the one it is at.
    """

    worker: str
    started: datetime
    seen: datetime
    stopping: bool
    trial: int | None


def workers_of(engine: Engine, study: str) -> list[Seen]:
    """The workers of a study that have not ended as far as this host can see, in the order in which they came."""
    if not sa.inspect(engine).has_table(workers.name):  # a database that only an older version has searched in
        return []
    attributes = sa.table("trial_user_attributes", sa.column("trial_id"), sa.column("key"), sa.column("value_json"))
    trials = sa.table("trials", sa.column("trial_id"), sa.column("number"), sa.column("state"))
    running = (
        sa.select(attributes.c.value_json, trials.c.number)
        .join(trials, trials.c.trial_id == attributes.c.trial_id)
        .where(attributes.c.key == WORKER, sa.cast(trials.c.state, sa.Text) == "RUNNING")
    )
    query = sa.select(workers.c.worker, workers.c.started, workers.c.seen, workers.c.stop).where(
        workers.c.study == study
    )
    with engine.connect() as connection:
        at = {json.loads(worker): number for worker, number in connection.execute(running)}
        rows = connection.execute(query.order_by(workers.c.started, workers.c.worker)).all()
    return [Seen(*row, at.get(row[0])) for row in rows if not is_dead(row[0])]


def ask_to_stop(engine: Engine, study: str) -> int:
    """Ask all workers of a study to stop after the trial they are at; how many there are."""
    living = [one.worker for one in workers_of(engine, study)]
    with engine.begin() as connection:
        connection.execute(workers.update().where(workers.c.worker.in_(living)).values(stop=True))
    return len(living)


def stuck_workers(engine: Engine, watch: Watch) -> set[str]:
    """Workers, of whichever host, whose counters stand still though this host does not see their processes ended."""
    with engine.connect() as connection:
        beats = {worker: beat for worker, beat in connection.execute(sa.select(workers.c.worker, workers.c.beat))}
    return watch.look(beats, {worker for worker in beats if not is_dead(worker)})


def _start(process: int) -> str | None:
    """When a process of this host started, in ticks since the host did; `None` if there is none, or only its corpse."""
    state, *fields = _stat(process) or ["X"]
    return None if state in "ZX" else fields[18]


def _stat(process: int) -> list[str] | None:
    """The fields of /proc/PROCESS/stat from the state on; `None` if there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _namespace() -> str:
    """Numbers of processes mean the same inside one of these alone."""
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
