"""Progress where nobody watches a terminal: plain lines, a complete last one, silence off rank 0."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sparsevit import console as module
from sparsevit.console import progress

LOOP = (
    "from sparsevit.console import progress\nwith progress('drawing', 3) as step:\n    step(); step(); step(note='[x]')"
)


def piped(**environment: str) -> str:
    variables = {key: value for key, value in os.environ.items() if key != "RANK"} | environment
    done = subprocess.run([sys.executable, "-c", LOOP], env=variables, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_a_pipe_gets_plain_lines_and_the_last_is_complete() -> None:
    out = piped()
    assert re.fullmatch(r"drawing: 3/3, [\d.e+]+/s \[x\]\n", out)  # notes are text, not markup


def test_ranks_other_than_0_are_silent() -> None:
    assert piped(RANK="0") != ""
    assert piped(RANK="1") == ""


def test_lines_come_at_intervals_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("sparsevit.console.time.monotonic", lambda: float(next(clock)))
    with progress("evaluating", 5) as step:
        for _ in range(5):
            step(note="mAP 0.8")
    assert capsys.readouterr().out.splitlines() == [
        "evaluating: 2/5, 0.1/s, 30 s left mAP 0.8",
        "evaluating: 4/5, 0.1/s, 10 s left mAP 0.8",
        "evaluating: 5/5, 0.1/s mAP 0.8",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "console", Console(force_terminal=True, width=100))
    with progress("fitting", 2) as step:
        step()
        step(note="[0.3]")
    out = capsys.readouterr().out
    assert "2/2" in out
    assert "[0.3]" in out


def test_messages_that_find_no_room_on_the_disk_are_lost_and_nothing_else(tmp_path: Path) -> None:
    work = (
        "import os, pathlib, sys\nfrom sparsevit.console import console\n"
        "for _ in range(300):\n    console.print('the database fails')\n"
        "pathlib.Path(sys.argv[1]).touch()\nos._exit(0)"
    )
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", work, str(tmp_path / "done")], stdout=full, check=True)
    assert (tmp_path / "done").exists()
