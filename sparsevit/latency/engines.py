"""A backbone made ready to be timed on a target, and the stopwatch that fits its device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

from sparsevit.errors import UserError
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsevit.model.protocol import SparseBackbone

Call = Callable[[], object]
Prepare = Callable[[Sparsity], Call]
"""Makes the forward pass of one sparsity ready: what it returns does the pass, and nothing else."""

Stopwatch = Callable[[Call], float]
"""Milliseconds that a call takes on the device."""

Clock = Callable[[], float]
"""Seconds from a monotonic clock."""

INPUT_SEED = 0


@contextmanager
def on_target(backbone: nn.Module, target: Target, clock: Clock) -> Iterator[tuple[Prepare, Stopwatch]]:
    """A copy of `backbone` on the target's device, dtype and threads, with random input; the original stays as it is.

    The number of threads is put back at the end.

    Args:
        target: resolved.
        clock: times calls on a CPU; GPUs have events of their own.

    Raises:
        UserError: if the GPU's memory does not suffice.
    """
    import torch

    device, dtype = torch.device(target.device), getattr(torch, target.dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    try:
        with torch.inference_mode(), torch.cuda.device(device) if target.on_gpu else nullcontext():
            module = copy.deepcopy(backbone).to(device=device, dtype=dtype).eval()
            generator = torch.Generator().manual_seed(INPUT_SEED)
            images = torch.randn(target.batch, 3, *target.size, generator=generator).to(device, dtype)
            engine = _graph if target.engine == "graph" else _eager
            yield engine(module, images), _cuda_stopwatch if target.on_gpu else _clock_stopwatch(clock)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"no memory left on {target.device} for batch {target.batch} at "
            f"{target.size[0]}x{target.size[1]}: take a smaller batch or size"
        ) from error
    finally:
        torch.set_num_threads(threads)


def _eager(module: nn.Module, images: Tensor) -> Prepare:
    backbone = cast("SparseBackbone", module)

    def prepare(sparsity: Sparsity) -> Call:
        backbone.sparsity = sparsity
        return lambda: backbone(images)

    return prepare


def _graph(module: nn.Module, images: Tensor) -> Prepare:
    """Replays one CUDA graph per sparsity. They share a memory pool, as one runs at a time and no output is kept."""
    import torch

    pool = torch.cuda.graph_pool_handle()
    graphs: dict[Sparsity, torch.cuda.CUDAGraph] = {}
    eager = _eager(module, images)

    def capture(sparsity: Sparsity) -> torch.cuda.CUDAGraph:
        call = eager(sparsity)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # fills caches and picks kernels, which a capture must not
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            call()
        return graph

    def prepare(sparsity: Sparsity) -> Call:
        if sparsity not in graphs:
            graphs[sparsity] = capture(sparsity)
        return graphs[sparsity].replay

    return prepare


def _clock_stopwatch(clock: Clock) -> Stopwatch:
    def stopwatch(call: Call) -> float:
        start = clock()
        call()
        return (clock() - start) * 1000

    return stopwatch


def _cuda_stopwatch(call: Call) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
