"""What else a latency depends on besides its target. A latency of another environment is another latency.

The environment identifies a latency; the conditions of the moment are recorded with it and identify nothing.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsevit.latency.target import Target

UNKNOWN = "unknown"


def environment(target: Target) -> dict[str, str]:
    """Device, settings and versions under which `target` is measured on this machine; no host name, nothing personal.

    Keys: `device` (model of the CPU or GPU), `cores` (that this process may use), `threads`, `torch`, `python`; on GPUs
    also `driver`, `cuda`, `power_limit` (W), `clocks` (that applications are given, MHz), and for float32 `matmul`
    (whether matrix products may be rounded to TF32: torch's float32 precision). Two latencies compare only if all of
    them agree.

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
        facts |= _gpu_settings(target.device) | {"cuda": str(torch.version.cuda)}
        if target.dtype == "float32":
            facts["matmul"] = torch.get_float32_matmul_precision()
    return facts


def conditions(target: Target) -> dict[str, str]:
    """The state of the machine right now, for the record: it varies from minute to minute and identifies nothing.

    Keys, each only where the system says so: `load` (runnable processes, mean of the last minute); on GPUs `clocks` and
    `clocks_max` (MHz), `temperature` (degrees Celsius).

    Raises:
        UserError: if the target's device is not there.
    """
    from sparsevit.latency.nvml import gpu

    target = target.resolve()
    facts = {}
    with contextlib.suppress(OSError):
        facts["load"] = f"{os.getloadavg()[0]:.2f}"
    if target.on_gpu:
        with gpu(target.device) as found:
            if found is not None:
                degrees = found.temperature_c()
                facts["clocks"] = _clocks(found.clocks_mhz("current"))
                facts["clocks_max"] = _clocks(found.clocks_mhz("max"))
                facts["temperature"] = UNKNOWN if degrees is None else str(degrees)
    return {name: value for name, value in facts.items() if value != UNKNOWN}


def difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Where two environments differ, in words: `driver 570.1 then, 580.2 now`; empty if they agree."""
    names = [*now, *(name for name in then if name not in now)]
    return "; ".join(
        f"{name} {then.get(name, UNKNOWN)} then, {now.get(name, UNKNOWN)} now"
        for name in names
        if then.get(name) != now.get(name)
    )


def allowed_cpus() -> list[int]:
    """Numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cores() -> int:
    return len(allowed_cpus())


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu_settings(device: str) -> dict[str, str]:
    """What someone set or installed, `unknown` where NVML cannot say."""
    from sparsevit.latency.nvml import gpu

    with gpu(device) as found:
        if found is None:
            return dict.fromkeys(("driver", "power_limit", "clocks"), UNKNOWN)
        watts = found.power_limit_w()
        return {
            "driver": found.driver() or UNKNOWN,
            "power_limit": UNKNOWN if watts is None else f"{watts:.0f} W",
            "clocks": _clocks(found.clocks_mhz("application")),
        }


def _clocks(mhz: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value} MHz" for name, value in mhz.items()) or UNKNOWN
