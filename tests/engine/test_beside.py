"""Work beside a pass, with streams that only note what waits for what."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from sparsevit.engine.beside import Beside


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waits_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waits_for.append(other)


GPU = torch.device("cuda", 0)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream(GPU)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return stream


def test_both_streams_wait(current: Stream) -> None:
    beside = Beside(GPU)
    with beside():
        pass
    assert not current.waits_for
    beside.join()
    (other,) = current.waits_for
    assert other.waits_for == [current]


def test_a_stream_that_nothing_ran_on_is_not_waited_for(current: Stream) -> None:
    """A capture must not: the stream is no part of it."""
    Beside(GPU).join()
    assert not current.waits_for


def test_without_a_gpu_all_is_done_in_turn() -> None:
    beside, done = Beside(torch.device("cpu")), []
    with beside():
        done.append(1)
    beside.join()
    assert done
