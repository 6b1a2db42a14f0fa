"""Latencies as plain values, shared by the latency model and everything that shows one. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sparsevit.sparsity import Sparsity


@dataclass(frozen=True)
class Measured:
    """A latency measured on the target: median and its confidence interval, ms."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Timing(Measured):
    """A measured latency and how many samples it is the median of."""

    samples: int

    @property
    def uncertainty(self) -> float:
        """Half the width of the interval as a fraction of the median."""
        return (self.high_ms - self.low_ms) / (2 * self.median_ms)


@dataclass(frozen=True)
class Survey:
    """All that one run of measuring told.

    Attributes:
        timings: of the configurations asked for, in their order.
        peak_bytes: most memory in tensors at once, weights included, of each; None on a CPU, where nobody counts.
        notes: what may have spoiled the timings, one sentence each.
    """

    timings: tuple[Timing, ...]
    peak_bytes: tuple[int | None, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class HeldOut:
    """One held-out check of the latency model."""

    sparsity: Sparsity
    predicted_ms: float
    measured_ms: float
