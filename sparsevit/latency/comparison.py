"""Some sparsities beside the dense one on a target: speed-up, windows kept, memory. What `sparsevit measure` shows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sparsevit.errors import UserError
from sparsevit.latency.engines import Clock
from sparsevit.latency.environment import conditions, environment
from sparsevit.latency.paper import STEPS as PAPER_STEPS
from sparsevit.latency.paper import TIMED, WARM_UP, survey_as_paper
from sparsevit.latency.target import Target
from sparsevit.latency.timing import PROGRESS, survey
from sparsevit.sparsity import Sparsity, layers_per_stage, windows_per_stage

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.console import Step
    from sparsevit.model.protocol import SparseBackbone, SparseDetector

MEDIAN, PAPER = "median", "paper"
PROTOCOLS = (MEDIAN, PAPER)
"""Ways to measure: `survey`'s, and the paper's."""

STATISTICS = {
    MEDIAN: "median of shuffled rounds, drift corrected by a dense anchor",
    PAPER: f"mean of the middle half of {TIMED} passes after {WARM_UP} to warm up, as in the paper",
}


@dataclass(frozen=True)
class Row:
    """One sparsity on the target.

    Attributes:
        ms, low_ms, high_ms: latency of the whole batch and its 95 % confidence interval.
        samples: how many the latency is taken from.
        speedup: dense latency over this one.
        windows_kept: share (fraction) of all windows of all blocks that are computed.
        peak_bytes: most memory in tensors at once, weights included; None on a CPU.
    """

    sparsity: Sparsity
    ms: float
    low_ms: float
    high_ms: float
    samples: int
    speedup: float
    windows_kept: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """Sparsities on one target, the dense one first, and under what they were measured."""

    target: Target
    protocol: str
    environment: Mapping[str, str]
    conditions: Mapping[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def slower(self) -> list[Row]:
        """Those that are slower than dense for certain: the intervals do not touch."""
        return [row for row in self.rows[1:] if row.low_ms > self.rows[0].high_ms]

    @property
    def no_faster(self) -> list[Row]:
        """Those that prune something and are neither faster nor slower than dense for certain."""
        dense, slower = self.rows[0], self.slower
        return [row for row in self.rows[1:] if row.high_ms >= dense.low_ms and row not in slower]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; latencies in ms, memory in bytes."""
        return {
            "target": str(self.target),
            "protocol": self.protocol,
            "statistic": STATISTICS[self.protocol],
            "environment": dict(self.environment),
            "conditions": dict(self.conditions),
            "latencies": [
                {
                    "sparsity": str(row.sparsity),
                    "ms": row.ms,
                    "low_ms": row.low_ms,
                    "high_ms": row.high_ms,
                    "samples": row.samples,
                    "speedup": row.speedup,
                    "windows_kept": row.windows_kept,
                    "peak_memory_bytes": row.peak_bytes,
                }
                for row in self.rows
            ],
            "slower_than_dense": [str(row.sparsity) for row in self.slower],
            "notes": list(self.notes),
        }


def steps(protocol: str, sparsities: int) -> int:
    """How many steps `compare` reports altogether, the dense configuration counted among the sparsities."""
    return PAPER_STEPS * sparsities if protocol == PAPER else PROGRESS


def compare(
    subject: nn.Module,
    target: Target,
    sparsities: Sequence[Sparsity],
    *,
    protocol: str = MEDIAN,
    budget_s: float = 20.0,
    precision: float = 0.01,
    seed: int = 0,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Measure the dense configuration and some others on a target.

    Args:
        subject: a `SparseBackbone`, or for targets of that scope a `SparseDetector`; it is copied.
        sparsities: in the order of the rows; the dense one is put first, and none comes twice.
        protocol: one of `PROTOCOLS`; under the paper's, budget, precision and seed have no meaning.
        budget_s, precision, seed, step, clock: see `survey`; `steps` says how many steps there are.

    Raises:
        UserError: as `survey` and `survey_as_paper`.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is unknown: write {' or '.join(PROTOCOLS)}")
    target, shape = target.resolve(), cast("SparseBackbone", subject)
    asked = list(dict.fromkeys([Sparsity.of(None, shape.depths), *sparsities]))
    before = conditions(target)
    figures: list[tuple[float, float, float, int]]
    if protocol == PAPER:
        told = survey_as_paper(subject, target, asked, step=step, clock=clock)
        figures = [(one.mean_ms, one.low_ms, one.high_ms, TIMED) for one in told.timings]
        peaks, notes = told.peak_bytes, told.notes
    else:
        found = survey(
            subject, target, asked, budget_s=budget_s, precision=precision, seed=seed, step=step, clock=clock
        )
        figures = [(one.median_ms, one.low_ms, one.high_ms, one.samples) for one in found.timings]
        peaks, notes = found.peak_bytes, found.notes
    rows = [
        Row(sparsity, *figure, figures[0][0] / figure[0], kept_share(sparsity, shape, target.size), peak)
        for sparsity, figure, peak in zip(asked, figures, peaks, strict=True)
    ]
    return Comparison(target, protocol, environment(target), before, tuple(rows), notes)


def kept_share(sparsity: Sparsity, shape: SparseBackbone | SparseDetector, size: tuple[int, int]) -> float:
    """Windows that blocks compute, as a fraction of all windows of all blocks, for images of `(height, width)`."""
    windows = windows_per_stage(size, stages=len(shape.depths), window=shape.window_size, patch=shape.patch_size)
    blocks = [
        min(2, depth - 2 * layer)
        for depth, layers in zip(shape.depths, layers_per_stage(shape.depths), strict=True)
        for layer in range(layers)
    ]
    kept = sum(count * some for count, some in zip(sparsity.kept(windows), blocks, strict=True))
    return kept / sum(count * depth for count, depth in zip(windows, shape.depths, strict=True))
