"""A backbone or a detector made ready to be timed on a target, and the stopwatch that fits its device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

from sparsevit.latency.engines import ENGINES, Clock, Prepare, Stopwatch
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsevit.model.protocol import SparseDetector

INPUT_SEED = 0

Ready = Callable[[Sparsity], Callable[[], object]]
"""Makes a call of the whole subject ready under one sparsity: a backbone's forward pass, or a detector end to end."""


@contextmanager
def on_target(subject: nn.Module, target: Target, clock: Clock) -> Iterator[tuple[Ready, Stopwatch]]:
    """A copy of `subject` on the target's device, dtype and threads, with its input; the original stays as it is.

    The number of threads is put back at the end.

    Args:
        subject: a `SparseBackbone`, which is given noise; or, where that is the target's scope, a `SparseDetector`,
            which chooses its own images.
        target: resolved.
        clock: times calls on a CPU; GPUs have events of their own.
    """
    import torch

    engine = ENGINES[target.engine]
    device, dtype = torch.device(target.device), getattr(torch, target.dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    try:
        with torch.inference_mode(), engine.around(), torch.cuda.device(device) if target.on_gpu else nullcontext():
            module = copy.deepcopy(subject).eval()
            ready: Ready
            if target.scope == "detector":
                detector = cast("SparseDetector", module.to(device))
                images = detector.example_images(target.batch, target.size).to(device)
                backbone = detector.backbone.to(dtype)
                ready = _end_to_end(detector, images, engine.build(backbone, images.to(dtype), True))
            else:
                ready = engine.build(module.to(device=device, dtype=dtype), noise(target), False)
            yield ready, cuda_stopwatch if target.on_gpu else clock_stopwatch(clock)
    finally:
        torch.set_num_threads(threads)


def noise(target: Target) -> Tensor:
    """Images of normal noise, shape `(B, 3, H, W)`, on the target's device in its dtype; always the same there."""
    import torch

    generator = torch.Generator(target.device).manual_seed(INPUT_SEED)
    dtype = getattr(torch, target.dtype)
    return torch.randn(target.batch, 3, *target.size, generator=generator, device=target.device, dtype=dtype)


def _end_to_end(detector: SparseDetector, images: Tensor, prepare: Prepare) -> Ready:
    def ready(sparsity: Sparsity) -> Callable[[], object]:
        features = prepare(sparsity)
        return lambda: detector.detect(images, features())

    return ready


def clock_stopwatch(clock: Clock) -> Stopwatch:
    """A stopwatch for calls that have done their work when they return."""

    def stopwatch(call: Callable[[], object], times: int) -> float:
        start = clock()
        for _ in range(times):
            call()
        return (clock() - start) * 1000 / times

    return stopwatch


def cuda_stopwatch(call: Callable[[], object], times: int) -> float:
    """A stopwatch for calls that leave work on the current CUDA stream, from an idle GPU on."""
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / times
