"""What the driver says of a GPU: settings that last, and its state at the moment. Nothing is ever changed.

Where NVML is missing or silent a fact is simply left out; timing goes on without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

_Fact = TypeVar("_Fact")

# Bits of NVML's clocks event reasons that slow a GPU down, from nvml.h.
THROTTLING = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


class Gpu:
    """One GPU as NVML knows it. Every method returns None, or nothing, where NVML does not say."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def _ask(self, question: Callable[[], _Fact]) -> _Fact | None:
        try:
            return question()
        except (self._nvml.NVMLError, AttributeError):  # an older NVML lacks some questions
            return None

    def driver(self) -> str | None:
        return self._ask(lambda: str(self._nvml.nvmlSystemGetDriverVersion()))

    def power_limit_w(self) -> float | None:
        return self._ask(lambda: self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000)

    def clocks_mhz(self, kind: str) -> dict[str, int]:
        """Clocks of the multiprocessors and the memory, MHz; `kind` is `max`, `application` or `current`."""
        question = {
            "max": "nvmlDeviceGetMaxClockInfo",
            "application": "nvmlDeviceGetApplicationsClock",
            "current": "nvmlDeviceGetClockInfo",
        }[kind]
        parts = {"sm": self._nvml.NVML_CLOCK_SM, "memory": self._nvml.NVML_CLOCK_MEM}
        ask = getattr(self._nvml, question, None)
        if ask is None:
            return {}
        found = {name: self._ask(partial(ask, self._handle, part)) for name, part in parts.items()}
        return {name: int(value) for name, value in found.items() if value is not None}

    def throttling(self) -> list[str]:
        """What slows the GPU down at this moment."""
        bits = self._ask(lambda: self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        if bits is None:  # its name before driver 535
            bits = self._ask(lambda: self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        return [reason for bit, reason in THROTTLING.items() if (bits or 0) & bit]

    def utilisation(self) -> float | None:
        """Share of the last second or less in which some kernel ran, a fraction."""
        return self._ask(lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)

    def other_processes(self) -> int:
        """Compute processes that are not this one. Those of other containers cannot be told apart and do not count."""
        running = self._ask(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) or []
        return sum(one.pid != os.getpid() and Path(f"/proc/{one.pid}").exists() for one in running)

    def temperature_c(self) -> int | None:
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return self._ask(lambda: int(self._nvml.nvmlDeviceGetTemperature(self._handle, sensor)))


@contextmanager
def gpu(device: str) -> Iterator[Gpu | None]:
    """NVML's view of a torch device such as `cuda:0`; None where there is none."""
    import pynvml  # type: ignore[import-untyped]
    import torch

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        found: Gpu | None = None
        # By its identity: CUDA_VISIBLE_DEVICES renumbers torch's devices, and NVML knows nothing of that.
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        for kind in ("GPU", "MIG"):
            with suppress(pynvml.NVMLError):
                found = Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}"))
                break
        yield found
    finally:
        pynvml.nvmlShutdown()
