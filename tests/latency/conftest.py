"""A backbone that takes time without using any: its forward pass moves a clock by what its sparsity should cost."""

from __future__ import annotations

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


@pytest.fixture
def clock_type() -> type[FakeClock]:
    return FakeClock


@pytest.fixture
def backbone_type() -> type[FakeBackbone]:
    return FakeBackbone
