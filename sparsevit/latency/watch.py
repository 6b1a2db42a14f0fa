"""Looks after the machine while latencies are measured, and says what may have spoiled them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sparsevit.latency.environment import allowed_cpus
from sparsevit.latency.nvml import Gpu, gpu
from sparsevit.latency.target import Target

BUSY_GPU = 0.05
"""Share of time that a GPU may be at work before anything of ours runs on it."""

BUSY_CPUS = 0.1
"""Share of the allowed CPUs that others may use meanwhile."""

CLOCK_MOVES = 0.03
GLANCES = 6
GLANCE_S = 0.2
MIN_WATCH_S = 0.5
"""The kernel counts CPU time in ticks of 10 ms; over less than this they say little."""


class Watch:
    """What was seen of the machine so far; `look` adds to it, `notes` says what was wrong with it."""

    def __init__(self, found: Gpu | None, stat: Path = Path("/proc/stat")) -> None:
        self._gpu, self._stat = found, stat
        self._before: list[str] = []
        self._throttled: dict[str, int] = {}
        self._clocks: list[int] = []
        self._looks = 0
        if found is not None:
            self._look_before(found)
        self._start = time.monotonic()
        self._others_start = self._others_s()

    def _look_before(self, found: Gpu) -> None:
        others = found.other_processes()
        if others:
            self._before.append(f"{others} other process{'es hold' if others > 1 else ' holds'} the GPU too")
        # What this process itself did just before still counts for a moment: the least busy glance decides.
        busy = 1.0
        for glance in range(GLANCES):
            if glance:
                time.sleep(GLANCE_S)
            busy = min(busy, found.utilisation() or 0.0)
            if busy <= BUSY_GPU:
                return
        self._before.append(f"the GPU was {busy:.0%} busy with others' work before anything ran")

    def look(self) -> None:
        """Take down the state of a GPU that has just been at work."""
        if self._gpu is None:
            return
        self._looks += 1
        for reason in self._gpu.throttling():
            self._throttled[reason] = self._throttled.get(reason, 0) + 1
        clock = self._gpu.clocks_mhz("current").get("sm")
        if clock is not None:
            self._clocks.append(clock)

    def notes(self) -> list[str]:
        """What whoever reads the latencies should know, one sentence each; empty on a quiet machine."""
        said = list(self._before)
        said += [
            f"the GPU throttled: {reason}, in {count} of {self._looks} looks"
            for reason, count in self._throttled.items()
        ]
        if self._clocks and max(self._clocks) > min(self._clocks) * (1 + CLOCK_MOVES):
            said.append(f"the GPU changed its clock between {min(self._clocks)} and {max(self._clocks)} MHz")
        elapsed, end = time.monotonic() - self._start, self._others_s()
        if self._others_start is not None and end is not None and elapsed >= MIN_WATCH_S:
            cpus = len(allowed_cpus())
            share = (end - self._others_start) / elapsed / cpus
            if share > BUSY_CPUS:
                said.append(f"other programs used {min(share, 1.0):.0%} of the {cpus} CPUs meanwhile")
        return said

    def _others_s(self) -> float | None:
        """Seconds of work so far on the CPUs that this process may use, less its own; None where nobody counts."""
        try:
            lines = self._stat.read_text().splitlines()
        except OSError:
            return None
        return busy_seconds(lines, allowed_cpus()) - time.process_time()


def busy_seconds(lines: Sequence[str], cpus: Sequence[int]) -> float:
    """Seconds of work of some CPUs since the machine started, from the lines of `/proc/stat` (see proc(5))."""
    wanted = {f"cpu{number}" for number in cpus}
    ticks = 0
    for line in lines:
        name, *fields = line.split()
        if name in wanted:
            # user nice system idle iowait irq softirq steal; guest time is in user already
            ticks += sum(int(field) for place, field in enumerate(fields[:8]) if place not in (3, 4))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def watching(target: Target) -> Iterator[Watch]:
    """A watch over the target's device and the CPUs."""
    if not target.on_gpu:
        yield Watch(None)
        return
    with gpu(target.device) as found:
        yield Watch(found)
