"""Latencies of many configurations at once, in short rounds in shuffled order around a dense anchor."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparsevit.errors import UserError
from sparsevit.latency.drift import median_interval, without_drift
from sparsevit.latency.engines import Clock, Prepare, Stopwatch, on_target
from sparsevit.latency.results import Timing
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.console import Step

__all__ = ["PROGRESS", "Timing", "measure"]

PROGRESS = 100
"""Steps that one `measure` reports altogether, however long it takes: `progress(title, PROGRESS)`."""

ANCHOR_EVERY = 4
MIN_ROUNDS = 3
PRECISE_ROUNDS = 6
"""Fewer samples have no 95 % interval, see `median_interval`."""

MAX_ROUNDS = 1000
VISIT_MS = 5.0
MAX_CALLS = 10
WARM_UP_SHARE = 0.1
STABLE = 0.03


def measure(
    backbone: nn.Module,
    target: Target,
    sparsities: Sequence[Sparsity],
    *,
    budget_s: float = 30.0,
    precision: float = 0.01,
    seed: int = 0,
    reference_ms: float | None = None,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Latency of each sparsity on the target, in ms for the whole batch, in the order given.

    After a warm-up, every round runs all configurations in a fresh order, with the dense one as an anchor in between,
    until every interval is narrow enough or the time is over. Drift is corrected, see `without_drift`.

    Args:
        backbone: a `SparseBackbone`; it is copied, and stays as it is.
        budget_s: seconds after which no further round starts; there are always `MIN_ROUNDS`.
        precision: half of the intervals' width, as a fraction of the median, that is narrow enough.
        seed: of the order of configurations.
        reference_ms: the dense latency to state others relative to, in place of the dense median of this run.
        step: told of progress, `PROGRESS` steps altogether.
        clock: seconds, monotonic; times calls on a CPU, and the budget.

    Raises:
        UserError: if the device is not there, its memory does not suffice, or a sparsity does not fit the backbone.
    """
    target = target.resolve()
    if not 0 < budget_s < math.inf:
        raise UserError(f"a budget of {budget_s} s is no time to measure in: give seconds above 0")
    depths: tuple[int, ...] = backbone.depths  # type: ignore[assignment]
    index = {Sparsity.of(None, depths): 0}
    for sparsity in sparsities:
        index.setdefault(Sparsity.of(sparsity, depths), len(index))
    which: list[int] = []
    samples: list[float] = []
    told = _Told(step)
    start = clock()
    with on_target(backbone, target, clock) as (prepare, stopwatch):
        calls = _warm_up(prepare, stopwatch, list(index), clock, budget_s * WARM_UP_SHARE)
        configurations, rng = list(index), random.Random(seed)
        for done in range(1, MAX_ROUNDS + 1):
            order = _round(len(index), rng)
            for position, number in enumerate(order, 1):
                which.append(number)
                samples.append(_visit(prepare, stopwatch, configurations[number], calls))
                by_rounds = (done - 1 + position / len(order)) / MIN_ROUNDS
                told(min((clock() - start) / budget_s, by_rounds))
            if done < MIN_ROUNDS:
                continue
            timings = _timings(which, samples, reference_ms)
            precise = done >= PRECISE_ROUNDS and all(timing.uncertainty <= precision for timing in timings)
            if precise or clock() - start >= budget_s:
                break
    told(1.0)
    return [timings[index[Sparsity.of(sparsity, depths)]] for sparsity in sparsities]


def _round(count: int, rng: random.Random) -> list[int]:
    """Configurations 1 … count - 1 in random order, with the anchor, 0, first, last and after every few."""
    order = list(range(1, count))
    rng.shuffle(order)
    parts = [order[i : i + ANCHOR_EVERY] for i in range(0, len(order), ANCHOR_EVERY)]
    return [0, *(number for part in parts for number in (*part, 0))]


def _visit(prepare: Prepare, stopwatch: Stopwatch, sparsity: Sparsity, calls: int) -> float:
    """One sample, ms: the median of some calls in a row, after one that is not counted if calls are short."""
    call = prepare(sparsity)
    if calls == 1:
        return stopwatch(call)
    call()
    return float(np.median([stopwatch(call) for _ in range(calls)]))


def _warm_up(
    prepare: Prepare, stopwatch: Stopwatch, configurations: Sequence[Sparsity], clock: Clock, budget_s: float
) -> int:
    """Run each configuration once, and the dense one until its time is stable; returns how many calls make a sample."""
    for sparsity in configurations:
        prepare(sparsity)()
    start, dense = clock(), prepare(configurations[0])
    times = [stopwatch(dense) for _ in range(4)]
    while clock() - start < budget_s and abs(np.median(times[-4:-2]) / np.median(times[-2:]) - 1) > STABLE:
        times += [stopwatch(dense) for _ in range(2)]
    return min(MAX_CALLS, max(1, math.ceil(VISIT_MS / max(float(np.median(times[-4:])), 1e-6))))


def _timings(which: Sequence[int], samples: Sequence[float], reference_ms: float | None) -> list[Timing]:
    numbers = np.asarray(which, np.int64)
    ms = without_drift(numbers, np.asarray(samples, np.float64))
    if reference_ms is not None:
        ms *= reference_ms / np.median(ms[numbers == 0])
    groups = [ms[numbers == number] for number in range(numbers.max() + 1)]
    return [Timing(*median_interval(group), samples=len(group)) for group in groups]


class _Told:
    """Turns a growing fraction into steps out of `PROGRESS`."""

    def __init__(self, step: Step | None) -> None:
        self.step = step
        self.done = 0

    def __call__(self, fraction: float) -> None:
        due = int(PROGRESS * min(fraction, 1.0))
        if self.step is not None and due > self.done:
            self.step(due - self.done)
        self.done = max(self.done, due)
