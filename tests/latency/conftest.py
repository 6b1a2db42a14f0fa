"""A backbone that takes time without using any: its forward pass moves a clock by what its sparsity should cost."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsevit.sparsity import Sparsity

Cost = Callable[[Sparsity], float]


class FakeClock:
    """Seconds that pass only when told to; `pace(now)` slows everything down."""

    def __init__(self, pace: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.pace = pace

    def __call__(self) -> float:
        return self.now

    def pass_ms(self, ms: float) -> None:
        self.now += ms / 1000 * self.pace(self.now)

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeClock:
        return self  # copies of a backbone live in the same time


class Seen(list[tuple[str, tuple[int, ...], torch.dtype, int, bool]]):
    """What forward passes saw: sparsity, shape, dtype, threads, whether training. Shared by copies of a backbone."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Seen:
        return self


class FakeBackbone(nn.Module):
    window_size = 7
    patch_size = 4

    def __init__(self, clock: FakeClock, cost: Cost, depths: tuple[int, ...] = (2, 2, 6, 2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clock = clock
        self.cost = cost
        self.depths = depths
        self.sparsity = Sparsity.of(None, depths)
        self.seen = Seen()

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen.append(
            (str(self.sparsity), tuple(images.shape), images.dtype, torch.get_num_threads(), self.training)
        )
        self.clock.pass_ms(self.cost(self.sparsity))
        return [images * self.weight]


class GpuMachine:
    """What a made-up NVML and torch tell of one GPU; `silent` answers no question, `absent` has no NVML."""

    def __init__(self) -> None:
        self.clock, self.power_limit_mw, self.reasons, self.busy = 1980, 700_000, 0, 0
        self.processes: list[int] = []
        self.asked: list[str] = []
        self.silent = self.absent = False

    def nvml(self) -> types.ModuleType:
        class NVMLError(Exception):
            pass

        def answer(value: Callable[[], object]) -> Callable[..., object]:
            def ask(*_: object) -> object:
                if self.silent:
                    raise NVMLError("Not Supported")
                return value()

            return ask

        def init() -> None:
            if self.absent:
                raise NVMLError("Driver Not Loaded")

        def handle(uuid: str) -> object:
            self.asked.append(uuid)
            return object()

        def clock(kind: Callable[[], int]) -> Callable[..., object]:
            return lambda _, part: answer(lambda: kind() if part == 1 else 3201)()

        module = types.ModuleType("pynvml")
        for name, value in {
            "NVMLError": NVMLError,
            "NVML_CLOCK_SM": 1,
            "NVML_CLOCK_MEM": 2,
            "NVML_TEMPERATURE_GPU": 0,
            "nvmlInit": init,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByUUID": handle,
            "nvmlSystemGetDriverVersion": answer(lambda: "580.1"),
            "nvmlDeviceGetEnforcedPowerLimit": answer(lambda: self.power_limit_mw),
            "nvmlDeviceGetMaxClockInfo": clock(lambda: 1980),
            "nvmlDeviceGetApplicationsClock": clock(lambda: 1830),
            "nvmlDeviceGetClockInfo": clock(lambda: self.clock),
            # There is no nvmlDeviceGetCurrentClocksEventReasons, as before driver 535.
            "nvmlDeviceGetCurrentClocksThrottleReasons": answer(lambda: self.reasons),
            "nvmlDeviceGetUtilizationRates": answer(lambda: types.SimpleNamespace(gpu=self.busy)),
            "nvmlDeviceGetComputeRunningProcesses": answer(
                lambda: [types.SimpleNamespace(pid=pid) for pid in self.processes]
            ),
            "nvmlDeviceGetTemperature": answer(lambda: 41),
        }.items():
            setattr(module, name, value)
        return module


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    """Makes torch and NVML believe in one GPU, on which nothing can run."""
    machine = GpuMachine()
    monkeypatch.setitem(sys.modules, "pynvml", machine.nvml())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="0e11"))
    return machine


@pytest.fixture
def clock_type() -> type[FakeClock]:
    return FakeClock


@pytest.fixture
def backbone_type() -> type[FakeBackbone]:
    return FakeBackbone
