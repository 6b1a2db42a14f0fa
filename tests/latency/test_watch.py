from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sparsevit.latency import watch as module
from sparsevit.latency.nvml import gpu
from sparsevit.latency.target import Target
from sparsevit.latency.watch import Watch, busy_seconds, watching

PROC_STAT = """cpu  100 0 100 900 50 0 0 0 0 0
cpu0 1000 10 200 9000 50 3 4 5 70 0
cpu1 500 0 0 9000 0 0 0 0 0 0
cpu10 7000 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


def test_work_is_all_but_idleness_and_waiting_of_the_cpus_asked_for() -> None:
    lines = PROC_STAT.splitlines()
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert busy_seconds(lines, [0]) == pytest.approx(1222 * tick)
    assert busy_seconds(lines, [0, 1]) == pytest.approx(1722 * tick)
    assert busy_seconds(lines, []) == 0


class Machine:
    """A machine with two CPUs that others use as much as told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "stat"
        self.ticks, self.now, self.own = 0.0, 0.0, 0.0
        monkeypatch.setattr(module, "allowed_cpus", lambda: [0, 1])
        monkeypatch.setattr("sparsevit.latency.watch.time.monotonic", lambda: self.now)
        monkeypatch.setattr("sparsevit.latency.watch.time.process_time", lambda: self.own)
        monkeypatch.setattr("sparsevit.latency.watch.time.sleep", lambda seconds: None)
        self.go(0, 0)

    def go(self, seconds: float, others: float, own: float = 0.0) -> None:
        """Let time pass, in which others and this process use so many CPUs."""
        self.now += seconds
        self.own += seconds * own
        self.ticks += seconds * (others + own) * os.sysconf("SC_CLK_TCK")
        self.path.write_text(f"cpu0 {round(self.ticks)} 0 0 0 0 0 0 0\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_others_on_the_cpus_are_noticed_and_own_work_is_not(machine: Machine) -> None:
    quiet = Watch(None, machine.path)
    machine.go(10, others=0.1, own=1.9)
    assert quiet.notes() == []
    busy = Watch(None, machine.path)
    machine.go(10, others=0.8, own=1)
    assert busy.notes() == ["other programs used 40% of the 2 CPUs meanwhile"]


def test_a_moment_says_nothing_and_neither_does_a_system_without_counts(machine: Machine, tmp_path: Path) -> None:
    short = Watch(None, machine.path)
    machine.go(0.1, others=2)
    assert short.notes() == []
    blind = Watch(None, tmp_path / "absent")
    machine.go(10, others=2)
    assert blind.notes() == []


def test_a_quiet_gpu_needs_no_note(machine: Machine, gpu_machine: Any) -> None:
    with gpu("cuda:0") as found:
        watch = Watch(found, machine.path)
        for clock in (1950, 1980):
            gpu_machine.clock = clock
            watch.look()
        assert watch.notes() == []


def test_a_gpu_that_others_use_throttles_and_changes_clocks(machine: Machine, gpu_machine: Any) -> None:
    gpu_machine.busy, gpu_machine.processes = 43, [os.getpid(), os.getppid(), 2**30]
    with gpu("cuda:0") as found:
        watch = Watch(found, machine.path)
        for clock, reasons in ((1980, 0x1), (1200, 0x4 | 0x2), (1500, 0x4 | 0x40)):
            gpu_machine.clock, gpu_machine.reasons = clock, reasons
            watch.look()
        assert watch.notes() == [
            "1 other process holds the GPU too",
            "the GPU was 43% busy with others' work before anything ran",
            "the GPU throttled: power limit, in 2 of 3 looks",
            "the GPU throttled: temperature (hardware), in 1 of 3 looks",
            "the GPU changed its clock between 1200 and 1980 MHz",
        ]


def test_a_gpu_that_says_nothing_is_no_reason_for_notes(machine: Machine, gpu_machine: Any) -> None:
    gpu_machine.silent = True
    with watching(Target("cuda:0")) as watch:
        watch.look()
        assert watch.notes() == []
