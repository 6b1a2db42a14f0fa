"""What else a latency depends on besides its target. A latency of another environment is another latency."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsevit.latency.target import Target


def environment(target: Target) -> dict[str, str]:
    """Device, driver and versions under which `target` is measured on this machine; no host name, nothing personal.

    Keys: `device` (model of the CPU or GPU), `cores` (that this process may use), `threads`, `torch`, `python`; on GPUs
    also `driver` and `cuda`.

    Raises:
        UserError: if the target's device is not there.
    """
    import torch

    target = target.resolve()
    facts = {
        "device": torch.cuda.get_device_name(target.device) if target.on_gpu else _cpu_model(),
        "cores": str(_cores()),
        "threads": str(target.threads),
        "torch": str(torch.__version__),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    if target.on_gpu:
        facts |= {"driver": _driver(), "cuda": str(torch.version.cuda)}
    return facts


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _driver() -> str:
    """The GPU driver's version; `unknown` where NVML cannot say."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "unknown"
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "unknown"
    finally:
        pynvml.nvmlShutdown()
