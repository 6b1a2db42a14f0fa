"""Work that nothing else in a pass waits for, on a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Beside:
    """A second stream on a GPU; elsewhere things are done in turn.

    In a capture it becomes a branch of the graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._used = False
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """What is launched inside waits for all that was launched before, and nothing after waits for it."""
        if self._stream is None:
            yield
            return
        self._used = True
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """From here on the current stream waits for it, if anything was launched there.

        Else a capture would end: it must not wait for a stream that is not a part of it.
        """
        if self._stream is not None and self._used:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
