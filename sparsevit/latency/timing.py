"""Latencies of many configurations at once, in short rounds in shuffled order around a dense anchor."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparsevit.errors import UserError
from sparsevit.latency.drift import median_interval, wander, without_drift
from sparsevit.latency.engines import ENGINES, Clock, Stopwatch
from sparsevit.latency.memory import gpu_peak, is_out_of_memory, or_say_what_fits, require_host_memory, reset_gpu_peak
from sparsevit.latency.results import Survey, Timing
from sparsevit.latency.running import Ready, on_target
from sparsevit.latency.target import Target
from sparsevit.latency.watch import Watch, watching
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.console import Step

__all__ = ["PROGRESS", "Timing", "measure", "survey"]

PROGRESS = 100
"""Steps that one `measure` reports altogether, however long it takes: `progress(title, PROGRESS)`."""

ANCHOR_EVERY = 4
MIN_ROUNDS = 3
PRECISE_ROUNDS = 6
"""Fewer samples have no 95 % interval, see `median_interval`."""

MAX_ROUNDS = 1000
VISIT_MS = 5.0
MAX_CALLS = 10
REPLAY_MS = 1.0
"""Replays of a graph below this are timed several at once: the events around them cost some microseconds."""

WARM_UP_SHARE = 0.1
WARM_UP_S = 0.2
"""GPUs take about so long to raise their clocks."""

STABLE = 0.02
MULTIPLE = 32
"""Pixels: detectors with feature pyramids are trained on image sides that are multiples of this."""

WANDERS = 0.05
"""Change of the machine's pace from which on it is worth a note; it is corrected all the same."""


def measure(
    subject: nn.Module,
    target: Target,
    sparsities: Sequence[Sparsity],
    *,
    budget_s: float = 30.0,
    precision: float = 0.01,
    seed: int = 0,
    known: Mapping[Sparsity, float] | None = None,
    step: Step | None = None,
    note: Callable[[str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Latency of each sparsity on the target, in ms for the whole batch, in the order given.

    Arguments and errors are those of `survey`, which tells more; `note` is told its notes.
    """
    found = survey(
        subject,
        target,
        sparsities,
        budget_s=budget_s,
        precision=precision,
        seed=seed,
        known=known,
        step=step,
        clock=clock,
    )
    if note is not None:
        for line in found.notes:
            note(line)
    return list(found.timings)


def survey(
    subject: nn.Module,
    target: Target,
    sparsities: Sequence[Sparsity],
    *,
    budget_s: float = 30.0,
    precision: float = 0.01,
    seed: int = 0,
    known: Mapping[Sparsity, float] | None = None,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> Survey:
    """Latency of each sparsity on the target, in ms for the whole batch, with peak memory and what was odd.

    After a warm-up, every round runs all configurations in a fresh order, with the dense one as an anchor in between,
    until every interval is narrow enough or the time is over. Drift is corrected, see `without_drift`.

    Args:
        subject: a `SparseBackbone`, or for targets of that scope a `SparseDetector`; it is copied, and stays as it is.
        budget_s: seconds after which no further round starts; there are always `MIN_ROUNDS`. Making every
            configuration ready (compiling, capturing graphs, running each once) comes before and does not count.
        precision: half of the intervals' width, as a fraction of the median, that is narrow enough.
        seed: of the order of configurations.
        known: latencies, ms, as they were when the machine had the pace at which results are to be stated. These are
            measured too, and the median of how they compare is the machine's pace now: one configuration alone is
            sometimes a percent off for a whole run, in other memory or another graph.
        step: told of progress, `PROGRESS` steps altogether.
        clock: seconds, monotonic; times calls on a CPU, and the budget.

    Raises:
        UserError: if the device is not there, its memory does not suffice (`MemoryShortError`, which says what fits),
            the detector cannot take the size, or a sparsity does not fit the backbone.
    """
    target = target.resolve()
    if not 0 < budget_s < math.inf:
        raise UserError(f"a budget of {budget_s} s is no time to measure in: give seconds above 0")
    depths: tuple[int, ...] = subject.depths  # type: ignore[assignment]
    index = {Sparsity.of(None, depths): 0}
    for sparsity in [*sparsities, *(known or ())]:
        index.setdefault(Sparsity.of(sparsity, depths), len(index))
    then = {index[Sparsity.of(sparsity, depths)]: ms for sparsity, ms in (known or {}).items()}
    asked = [index[Sparsity.of(sparsity, depths)] for sparsity in sparsities]
    told = _Told(step)

    def run() -> Survey:
        require_host_memory(subject, target, run_once)
        check_size(subject, target)
        with watching(target) as watch, on_target(subject, target, clock) as (ready, stopwatch):
            first = first_runs(ready, list(index), target)
            pattern = _warm_up(ready, stopwatch, target, next(iter(index)), clock, budget_s * WARM_UP_SHARE)
            running = _Run(ready, stopwatch, pattern, list(index))
            which, samples = _rounds(running, clock, budget_s, precision, random.Random(seed), told, watch)
        every = _timings(which, samples, then)
        timings = tuple(every[number] for number in asked)
        notes = (*watch.notes(), *_of_samples(which, samples, timings, precision))
        if target.scope == "detector":
            counts = [first[number].objects or 0 for number in asked]
            notes = (f"timed with {_span(counts)} objects found in {target.batch} image(s); more take longer", *notes)
        return Survey(timings, tuple(first[number].peak_bytes for number in asked), notes)

    found = or_say_what_fits(run, subject, target, run_once)
    told(1.0)
    return found


def run_once(subject: nn.Module, target: Target) -> None:
    """One dense call on the target, to the end."""
    import torch

    depths: tuple[int, ...] = subject.depths  # type: ignore[assignment]
    with on_target(subject, target, time.perf_counter) as (ready, _):
        ready(Sparsity.of(None, depths))()
        if target.on_gpu:
            torch.cuda.synchronize()


def check_size(subject: nn.Module, target: Target) -> None:
    """Refuse a size that a detector fails on, where one nearby works. Backbones take any.

    Raises:
        UserError: naming the size that works.
    """
    nearby = tuple(max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in target.size)
    if target.scope != "detector" or nearby == target.size:
        return
    try:
        run_once(subject, target)
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        height, width = nearby
        run_once(subject, replace(target, size=(height, width)))  # if this fails too, it is not the size
        raise UserError(
            f"the detector cannot take images of {target.size[0]}x{target.size[1]}: {height}x{width} works"
        ) from error


class FirstRun(NamedTuple):
    """Objects that a detector found in its first call, and the memory at its peak (bytes; None on a CPU)."""

    objects: int | None
    peak_bytes: int | None


def first_runs(ready: Ready, configurations: Sequence[Sparsity], target: Target) -> list[FirstRun]:
    """Run each configuration once, so that what happens only then is over."""
    import torch

    found = []
    for sparsity in configurations:
        reset_gpu_peak(target)
        result = ready(sparsity)()
        if target.on_gpu:
            torch.cuda.synchronize()
        # Feature maps of all configurations together would fill a memory; a detector's count does not.
        found.append(FirstRun(result if isinstance(result, int) else None, gpu_peak(target)))
        del result
    return found


class _Pattern(NamedTuple):
    """How a sample is taken: the median of some readings of the stopwatch, each over some calls in a row."""

    readings: int
    calls: int


class _Run(NamedTuple):
    ready: Ready
    stopwatch: Stopwatch
    pattern: _Pattern
    configurations: Sequence[Sparsity]

    def sample(self, number: int) -> float:
        """One sample of a configuration, ms; after a call that is not counted, if calls are short."""
        call, (readings, calls) = self.ready(self.configurations[number]), self.pattern
        if readings == 1:
            return self.stopwatch(call, calls)
        call()
        return float(np.median([self.stopwatch(call, calls) for _ in range(readings)]))


def _rounds(
    run: _Run, clock: Clock, budget_s: float, precision: float, rng: random.Random, told: _Told, watch: Watch
) -> tuple[list[int], list[float]]:
    """Samples until they are precise or the time is over: the configuration of each, and its ms, in order of time."""
    which: list[int] = []
    samples: list[float] = []
    start = clock()
    for done in range(1, MAX_ROUNDS + 1):
        order = _round(len(run.configurations), rng)
        for position, number in enumerate(order, 1):
            which.append(number)
            samples.append(run.sample(number))
            by_rounds = (done - 1 + position / len(order)) / MIN_ROUNDS
            told(min((clock() - start) / budget_s, by_rounds))
        watch.look()
        if done < MIN_ROUNDS:
            continue
        precise = done >= PRECISE_ROUNDS and _is_precise(_timings(which, samples, {}), precision)
        if precise or clock() - start >= budget_s:
            break
    return which, samples


def _round(count: int, rng: random.Random) -> list[int]:
    """Configurations 1 … count - 1 in random order, with the anchor, 0, first, last and after every few."""
    order = list(range(1, count))
    rng.shuffle(order)
    parts = [order[i : i + ANCHOR_EVERY] for i in range(0, len(order), ANCHOR_EVERY)]
    return [0, *(number for part in parts for number in (*part, 0))]


def _warm_up(
    ready: Ready, stopwatch: Stopwatch, target: Target, dense: Sparsity, clock: Clock, budget_s: float
) -> _Pattern:
    """Run the dense configuration until its time is stable, within the budget; returns how to take samples."""
    start, call = clock(), ready(dense)
    times = [stopwatch(call, 1) for _ in range(4)]
    while (gone := clock() - start) < budget_s and (gone < WARM_UP_S or not _is_stable(times)):
        times.append(stopwatch(call, 1))
    ms = max(float(np.median(times[-4:])), 1e-6)
    calls = min(MAX_CALLS, math.ceil(REPLAY_MS / ms)) if ENGINES[target.engine].replays else 1
    return _Pattern(min(MAX_CALLS, max(1, math.ceil(VISIT_MS / (ms * calls)))), calls)


def _is_stable(times: Sequence[float]) -> bool:
    """Whether the latest few times are no longer faster or slower than as many before them."""
    few = min(10, len(times) // 2)
    return abs(float(np.median(times[-2 * few : -few]) / np.median(times[-few:])) - 1) <= STABLE


def _is_precise(timings: Sequence[Timing], precision: float) -> bool:
    return all(timing.uncertainty <= precision for timing in timings)


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts, default=0), max(counts, default=0)
    return str(most) if least == most else f"{least} to {most}"


def _of_samples(which: Sequence[int], samples: Sequence[float], asked: Sequence[Timing], precision: float) -> list[str]:
    """What the samples themselves say of the machine: that its pace wandered, that the time was too short."""
    said = []
    moved = wander(np.asarray(which, np.int64), np.asarray(samples, np.float64))
    if moved > WANDERS:
        said.append(f"the machine's pace wandered by {moved:.0%} meanwhile; this is corrected by the dense anchor")
    wide = [timing for timing in asked if timing.uncertainty > precision]
    if wide:
        worst = max(timing.uncertainty for timing in wide)
        said.append(f"{len(wide)} of {len(asked)} intervals are wider than ±{precision:.1%}, up to ±{worst:.1%}")
    return said


def _timings(which: Sequence[int], samples: Sequence[float], known: Mapping[int, float]) -> list[Timing]:
    numbers = np.asarray(which, np.int64)
    ms = without_drift(numbers, np.asarray(samples, np.float64))
    if known:
        ms *= np.median([then / np.median(ms[numbers == number]) for number, then in known.items()])
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
