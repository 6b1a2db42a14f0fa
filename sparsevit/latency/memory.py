"""Memory while latencies are measured: the peak on a GPU, and what would fit where a target does not."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sparsevit.errors import UserError
from sparsevit.latency.target import MIN_SIDE, Target

if TYPE_CHECKING:
    from torch import nn

_Result = TypeVar("_Result")

Attempt = Callable[["nn.Module", Target], None]
"""One dense call of a subject on a target; raises `is_out_of_memory` errors."""

# Of plain RuntimeErrors: torch's on a CPU, CUDA's, and those of its libraries.
WORDS = ("not enough memory", "can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
SPARE = 0.9
"""Share of a machine's free memory that may be planned with."""

WORTH_A_TRY = 200
"""How often the images themselves fit a memory that is surely enough: Swin takes 30 to 60 times their bytes."""


class MemoryShortError(UserError):
    """A target does not fit the memory of its device; the message says what does."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory did not suffice."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def or_say_what_fits(run: Callable[[], _Result], subject: nn.Module, target: Target, attempt: Attempt) -> _Result:
    """What `run` returns; where memory does not suffice, an error that names a smaller target, tried and seen to fit.

    Raises:
        MemoryShortError: if memory does not suffice.
    """
    try:
        return run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Only here, out of reach of the error and its frames, is what they held free.
    raise shortage(target, fitting(subject, target, attempt))


def shortage(target: Target, fits: Target | None) -> MemoryShortError:
    """The error that says that `target` does not fit, and what does."""
    height, width = target.size
    short = f"no memory left on {target.device} for batch {target.batch} at {height}x{width}"
    if fits is None:
        return MemoryShortError(f"{short}, nor for anything smaller: close other programs, or take another device")
    rows, columns = fits.size
    return MemoryShortError(f"{short}: batch {fits.batch} at {rows}x{columns} fits")


def fitting(subject: nn.Module, target: Target, attempt: Attempt) -> Target | None:
    """The first of ever smaller targets that fits: half the batch down to one image, then half the size; or None."""
    while (smaller := _smaller(target)) is not None:
        target = smaller
        _let_go()
        try:
            attempt(subject, target)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return target
        finally:
            _let_go()
    return None


def _smaller(target: Target) -> Target | None:
    if target.batch > 1:
        return replace(target, batch=target.batch // 2)
    height, width = (max(side // 2 // 32 * 32, MIN_SIDE) for side in target.size)
    return (
        None
        if (height, width) == target.size or min(target.size) <= MIN_SIDE
        else replace(target, size=(height, width))
    )


def _let_go() -> None:
    """Give back what failed attempts held: tensors in dead frames, then torch's own reserve."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_host_memory(subject: nn.Module, target: Target, attempt: Attempt) -> None:
    """Refuse a batch that would not fit a CPU's memory before the system kills the process for it.

    Unless there is plenty, one image is run; what it took at its peak, times the batch, must be free. Systems that do
    not tell pass.

    Raises:
        MemoryShortError: if the batch does not fit.
    """
    if target.on_gpu or target.batch == 1:
        return
    free, image, one = host_free(), 3 * 4 * target.size[0] * target.size[1], replace(target, batch=1)
    if free is None or target.batch * image * WORTH_A_TRY < free:
        return
    attempt(subject, one)  # what the libraries take at their first use stays
    if not _reset_peak():
        return
    before = _resident("VmRSS")
    attempt(subject, one)
    peak = _resident("VmHWM")
    if before is None or peak is None or peak <= before:
        return
    most = int(free * SPARE) // (peak - before)
    if most < target.batch:
        raise shortage(target, replace(target, batch=max(1, most)))


def host_free(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that this process may still take: the system's, or its container's if that is less."""
    found = []
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no container, or an older kind of it
    return max(0, min(found)) if found else None


def _reset_peak() -> bool:
    """Start the count of the peak anew (5, see proc(5)); whether that worked.

    What the process holds free goes back to the system first, or a new tensor there would not show.
    """
    _let_go()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is None:
        return False
    trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def reset_gpu_peak(target: Target) -> None:
    """From here on counts what `gpu_peak` tells."""
    import torch

    if target.on_gpu:
        torch.cuda.reset_peak_memory_stats(target.device)


def gpu_peak(target: Target) -> int | None:
    """Most bytes in tensors at once, weights included, since `reset_gpu_peak`; None on a CPU, where nobody counts."""
    import torch

    return torch.cuda.max_memory_allocated(target.device) if target.on_gpu else None
