"""A device whose latencies are known, made up but of the parts that real ones have: to judge latency models by.

It takes time without using any: the forward pass of its backbone moves a clock by what the sparsity costs, times the
machine's pace and noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsevit.sparsity import Sparsity, windows_per_stage

TOKENS = 49
TILE = 128
GEMMS = (3, 1, 4, 4)  # of a Swin block (qkv, proj, two of the FFN): C times so many C of work


@dataclass(frozen=True)
class Device:
    """Costs of a made-up device; the defaults are near those of a large GPU that replays graphs in half precision.

    Attributes:
        depths: blocks of each stage.
        size: height and width of an image, pixels.
        batch: images per call.
        channels: of the first stage; they double from stage to stage.
        units: tiles that run at once. Work comes in waves of so many, so latencies have steps.
        tile_us: microseconds that a tile takes per 96 channels.
        token_us: microseconds per token and 96 channels in memory-bound work.
        launch_us: microseconds that every kernel takes at least.
        ranking_us: microseconds that ranking a stage's windows takes, once if anything in it is pruned.
        gather_us: microseconds that gathering and scattering take in every pruned block, however few windows.
        repeat_us: microseconds that a layer saves if it keeps the windows of the layer before it.
        kernel_choice: standard deviation of the luck in choosing a kernel for a number of windows, a fraction.
        cross: by how much less (a fraction) what stages save together is than the sum of what they save.
        floor_ms: latency of launching everything from the host; what takes less is as slow. 0 for none.
        noise: standard deviation of a call, a fraction.
        drift: how far the machine's pace wanders, a fraction.
        seed: of kernel choice, noise and drift.
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    size: tuple[int, int] = (672, 672)
    batch: int = 4
    channels: int = 96
    units: int = 132
    tile_us: float = 1.1
    token_us: float = 0.0008
    launch_us: float = 2.0
    ranking_us: float = 25.0
    gather_us: float = 6.0
    repeat_us: float = 0.0
    kernel_choice: float = 0.03
    cross: float = 0.0
    floor_ms: float = 0.0
    noise: float = 0.005
    drift: float = 0.01
    seed: int = 0

    @property
    def windows(self) -> tuple[int, ...]:
        return windows_per_stage(self.size, stages=len(self.depths))

    def latency_ms(self, sparsity: Sparsity) -> float:
        """The true latency, which no measurement shows without noise."""
        return _latency_ms(self, sparsity)


def cpu(**changes: Any) -> Device:
    """A core of a CPU: no waves of tiles to speak of, no launches, everything slower, and a noisy machine."""
    slow: dict[str, Any] = {
        "size": (448, 448), "batch": 1, "channels": 24, "units": 1, "tile_us": 60.0, "token_us": 0.4,
        "launch_us": 40.0, "ranking_us": 300.0, "gather_us": 100.0, "noise": 0.03, "drift": 0.1,
    }  # fmt: skip
    return Device(**{**slow, **changes})


@lru_cache(maxsize=1 << 15)
def _latency_ms(device: Device, sparsity: Sparsity) -> float:
    dense = [_stage_us(device, stage, (total,) * math.ceil(depth / 2)) for stage, (total, depth) in _stages(device)]
    kept = iter(sparsity.kept(device.windows))
    found = [_stage_us(device, stage, [next(kept) for _ in sparsity.stages[stage]]) for stage in range(len(dense))]
    saved = [1 - now / before for now, before in zip(found, dense, strict=True)]
    together: float = sum(a * b for i, a in enumerate(saved) for b in saved[:i])
    gpu_ms: float = sum(found) / 1000 * (1 + device.cross * together)
    kernels = 1 + 0.04 * sum(value > 0 for value in sparsity.flat)
    return max(gpu_ms, device.floor_ms * kernels)


def _stages(device: Device) -> list[tuple[int, tuple[int, int]]]:
    return list(enumerate(zip(device.windows, device.depths, strict=True)))


def _stage_us(device: Device, stage: int, kept: Sequence[int]) -> float:
    total, depth = device.windows[stage], device.depths[stage]
    pruned = [count < total for count in kept]
    layers = [(count, min(2, depth - 2 * place)) for place, count in enumerate(kept)]
    cost: float = sum(blocks * _block_us(device, stage, count) for count, blocks in layers)
    cost += device.ranking_us * any(pruned) + 2 * device.gather_us * sum(pruned)
    repeats = sum(a == b for a, b in zip(kept[1:], kept, strict=False) if a < total)
    merging = device.token_us * total * TOKENS * device.batch * math.prod([2] * stage)
    return cost - device.repeat_us * repeats + merging


@lru_cache(maxsize=1 << 12)
def _block_us(device: Device, stage: int, kept: int) -> float:
    tokens, channels = kept * TOKENS * device.batch, device.channels << stage
    luck = np.random.default_rng([device.seed, stage, kept]).standard_normal(len(GEMMS))
    gemms = 0.0
    for wide, chance in zip(GEMMS, luck, strict=True):
        tiles = math.ceil(tokens / TILE) * max(1, wide * channels / TILE)
        waves = 0.5 * math.ceil(tiles / device.units) + 0.5 * tiles / device.units  # later ones begin as others end
        gemms += waves * device.tile_us * channels / 96 * (1 + device.kernel_choice * chance)
    return gemms + device.token_us * tokens * channels / 96 * 6 + 10 * device.launch_us


@dataclass
class Time:
    """The clock of a made-up machine, seconds; passes only when told to."""

    device: Device
    now: float = 0.0
    _rng: np.random.Generator = field(init=False)
    _phases: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.device.seed, 1])
        self._phases = self._rng.uniform(0, 2 * np.pi, 3)

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: dict[int, Any]) -> Time:
        return self  # copies of a backbone live in the same time

    def pass_ms(self, ms: float) -> None:
        """Let a call go by that takes `ms` on a calm machine."""
        waves = np.sin(2 * np.pi * self.now / np.array([120.0, 31.0, 7.3]) + self._phases)
        pace = 1 + self.device.drift * float(waves @ [0.6, 0.3, 0.1])
        hiccup = self._rng.random() < 0.01
        noise = math.exp(self.device.noise * self._rng.standard_normal()) * (1.2 if hiccup else 1.0)
        self.now += ms / 1000 * pace * noise


class SyntheticBackbone(nn.Module):
    """A `SparseBackbone` whose forward pass takes the time of a made-up device."""

    window_size = 7
    patch_size = 4

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.clock = Time(device)
        self.depths = device.depths
        self.sparsity = Sparsity.of(None, device.depths)

    def forward(self, images: Tensor) -> list[Tensor]:
        self.clock.pass_ms(self.device.latency_ms(self.sparsity))
        return [torch.empty(0)]
