"""What the user sees while work goes on: messages and progress.

Bars on a terminal, plain lines when piped, silence off rank 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparsevit.errors import NO_ROOM

Step = Callable[..., None]
"""`step(advance=1, note="")`: one unit of work is done; the note replaces the last one."""

PLAIN_INTERVAL_S = 15.0


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """A message that finds no room on the disk is lost, not the work that it is about."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._buffer.clear()  # else it is printed with the next one


console = _Console(highlight=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Messages and progress go to the standard error output, where the standard output is for a machine to read."""
    before, console.stderr = console.stderr, True
    try:
        yield
    finally:
        console.stderr = before


@contextmanager
def progress(title: str, total: int) -> Iterator[Step]:
    """Show how far a loop of `total` steps is, with rate and time left; yields the function to call after each step."""
    if console.is_terminal and not console.quiet:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, note="")

            def step(advance: int = 1, note: str = "") -> None:
                bar.update(task, advance=advance, note=note)

            yield step
        return
    yield _plain_lines(title, total)


def _plain_lines(title: str, total: int) -> Step:
    start = shown = time.monotonic()
    done = 0

    def step(advance: int = 1, note: str = "") -> None:
        nonlocal done, shown
        done += advance
        now = time.monotonic()
        if done < total and now - shown < PLAIN_INTERVAL_S:
            return
        shown = now
        rate = done / max(now - start, 1e-9)
        time_left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        line = f"{title}: {done}/{total}, {_short(rate)}/s{time_left} {note}"
        console.print(line.rstrip(), markup=False)

    return step


def _short(rate: float) -> str:
    """Two digits of a small number, all whole ones of a large one."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
