"""Latency as the paper took it, so that figures can be laid beside its tables. To compare configurations, `survey` is
better: here nothing corrects drift, and configurations are timed one after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.latency.engines import Clock
from sparsevit.latency.memory import gpu_peak, or_say_what_fits, require_host_memory, reset_gpu_peak
from sparsevit.latency.running import on_target
from sparsevit.latency.target import Target
from sparsevit.latency.timing import run_once
from sparsevit.latency.watch import watching
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.console import Step

WARM_UP, TIMED = 500, 500
"""Forward passes of each configuration before and while the clock is read."""

REQUIRED = {"scope": "backbone", "batch": 4, "dtype": "float32", "engine": "eager"}
STEPS = 100
Z = 1.96
"""Standard deviations of a normal distribution that hold 95 %."""


@dataclass(frozen=True)
class PaperTiming:
    """Mean of the middle half of the passes, ms, and its 95 % confidence interval."""

    mean_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class PaperSurvey:
    """What the protocol told: timings in the order asked for, peak memory of each (bytes, None on a CPU), notes."""

    timings: tuple[PaperTiming, ...]
    peak_bytes: tuple[int | None, ...]
    notes: tuple[str, ...]


def survey_as_paper(
    backbone: nn.Module,
    target: Target,
    sparsities: Sequence[Sparsity],
    *,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> PaperSurvey:
    """Latency of each sparsity: batch 4, float32, eager, random input, `WARM_UP` and `TIMED` passes, middle half.

    Args:
        backbone: a `SparseBackbone`; it is copied, and stays as it is.
        step: told of progress, `STEPS` steps for each sparsity.
        clock: seconds, monotonic; GPUs have events of their own.

    Raises:
        UserError: if the target is not the paper's (device and size are free), or cannot be measured here.
    """
    for name, value in REQUIRED.items():
        if getattr(target, name) != value:
            raise UserError(f"the paper's protocol has {name} {value}, not {getattr(target, name)}: leave it out")
    target = target.resolve()
    depths: tuple[int, ...] = backbone.depths  # type: ignore[assignment]
    configurations = [Sparsity.of(sparsity, depths) for sparsity in sparsities]

    def run() -> PaperSurvey:
        require_host_memory(backbone, target, run_once)
        timings, peaks = [], []
        with watching(target) as watch, on_target(backbone, target, clock) as (ready, stopwatch):
            for sparsity in configurations:
                reset_gpu_peak(target)
                call, times = ready(sparsity), []
                for number in range(1, WARM_UP + TIMED + 1):
                    ms = stopwatch(call, 1)
                    if number > WARM_UP:
                        times.append(ms)
                    if step is not None and number % ((WARM_UP + TIMED) // STEPS) == 0:
                        step(1)
                watch.look()
                timings.append(middle_half(np.asarray(times)))
                peaks.append(gpu_peak(target))
        return PaperSurvey(tuple(timings), tuple(peaks), tuple(watch.notes()))

    return or_say_what_fits(run, backbone, target, run_once)


def middle_half(ms: NDArray[np.float64]) -> PaperTiming:
    """Mean of what is left without the fastest and the slowest quarter.

    The interval of a trimmed mean is that of Tukey and McLaughlin (1963): its standard error is the deviation of the
    winsorised sample over `(1 - 2 * 0.25) * sqrt(n)`.
    """
    ordered = np.sort(ms)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    mean, winsorised = float(middle.mean()), np.clip(ordered, middle[0], middle[-1])
    half = Z * float(winsorised.std(ddof=1)) / (0.5 * math.sqrt(len(ordered))) if len(ordered) > 1 else 0.0
    return PaperTiming(mean, mean - half, mean + half)
