"""A worker in a process of its own: started, asked how it is, and sent signals."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsevit.search.worker import worker_name


class Child:
    """A process that `start_child` made."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log
        self.worker: str | None = worker_name(process.pid)

    @property
    def why(self) -> str:
        return f"{self._log} says why"

    def poll(self) -> int | None:
        return self._process.poll()

    def send_signal(self, sig: int, /) -> None:
        self._process.send_signal(sig)

    def wait(self) -> int:
        return self._process.wait()

    def last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "a worker ended without a word")
        return said.removeprefix("error: ")


def start_child(
    arguments: Mapping[str, Any], environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> Child:
    """Start `supervised` with these arguments in a process of its own, which Ctrl-C does not reach.

    Args:
        arguments: for `run.work`.
        environment: variables besides this process's own.
        log: the file that it writes to.
        folder: where it runs; here by default.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparsevit.search.supervised"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=folder,
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin as stream:
        pickle.dump({**arguments, "parent": os.getpid()}, stream)
    return Child(process, log)
