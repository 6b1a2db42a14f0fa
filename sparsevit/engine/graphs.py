"""CUDA graphs of a backbone's passes: captured on first use, replayed after, a bounded number kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsevit.engine.recent import Recent

LIMIT = 32
"""Graphs kept; each costs well under a megabyte, and capturing one anew some milliseconds."""

Run = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Replay:
    """One captured pass: fill `images`, call it, read `maps`, which the next pass overwrites.

    buffers, weights: memory that the pass works in and reads, which a graph does not keep by itself.
    """

    graph: torch.cuda.CUDAGraph
    images: Tensor
    maps: tuple[Tensor, ...]
    buffers: object
    weights: object

    def __call__(self) -> None:
        """Run the pass on the current stream."""
        self.graph.replay()


class Graphs:
    """Replays by key. Passes run one at a time, so all graphs share one memory pool and, by shape, their input."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._replays: Recent[Hashable, Replay] = Recent(limit)
        self._inputs: Recent[Hashable, Tensor] = Recent(limit)
        self._pool: Any = None
        self._stream: Any = None

    def __len__(self) -> int:
        return len(self._replays)

    def __deepcopy__(self, memo: object) -> Graphs:
        return Graphs(self._replays.limit)

    def get(
        self,
        key: Hashable,
        like: Tensor,
        run: Run,
        buffers: Hashable,
        in_use: Callable[[object], bool],
        weights: object,
    ) -> Replay:
        """The replay of `key` for images like these in these buffers; `run` is captured if there is none.

        Args:
            weights: who holds what `run` reads; a replay may outlive its backbone.
            in_use: whether buffers are those of a pass to come; a capture makes the graphs of others go.
        """

        def make() -> Replay:
            self._replays.keep(lambda replay: in_use(replay.buffers))
            return self._capture(like, run, buffers, weights)

        return self._replays.get((key, like.shape, like.dtype, buffers), make)

    def clear(self) -> None:
        """Forget all, and the buffers they hold."""
        self._replays.clear()
        self._inputs.clear()
        self._pool = None

    def _capture(self, like: Tensor, run: Run, buffers: object, weights: object) -> Replay:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        images = self._inputs.get((like.shape, like.dtype), lambda: torch.zeros_like(like).contiguous())
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles what was never run, which a capture must not
            run(images)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if self._stream is None:
            # Kernels of the pass go before those beside it. PyTorch hands out 32 streams of a priority in turn: of one
            # and the same, a pass in 32 would be captured on the stream that `Beside` then gets, and have no branch.
            self._stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            maps = run(images)
        return Replay(graph, images, maps, buffers, weights)
