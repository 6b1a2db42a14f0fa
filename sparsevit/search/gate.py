"""Which proposals a worker lets through: not those whose evaluation failed, nor any outside the bounds as measured.

Measuring takes seconds and the database, so it happens between two tries to take a trial, never within one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsevit.search.candidates import Candidates
from sparsevit.search.claims import NoTrialError
from sparsevit.search.results import Bounds

if TYPE_CHECKING:
    from sparsevit.latency.results import Timing
    from sparsevit.sparsity import Sparsity


class UnmeasuredError(NoTrialError):
    """Raised where the latency of a candidate decides and is not known yet: `measure` it and try again."""

    def __init__(self, row: int) -> None:
        super().__init__(f"candidate {row} was not measured yet")
        self.row = row


@dataclass
class Gate:
    """What samplers ask before they propose a candidate, by row.

    Attributes:
        candidates: what is proposed.
        bounds: of latency, in ms.
        meter: the measured latency of a sparsity; `None` where predicted latencies count.
        failed: rows whose evaluation failed in this process.
    """

    candidates: Candidates
    bounds: Bounds
    meter: Callable[[Sparsity], Timing] | None = None
    failed: set[int] = field(default_factory=set)
    _measured: dict[int, float] = field(default_factory=dict)

    def know(self, measured: Mapping[Sparsity, Timing]) -> None:
        """Take over what was measured before."""
        for sparsity, found in measured.items():
            row = self.candidates.row(sparsity) if sparsity in self.candidates.space else -1
            if row >= 0:
                self._measured[row] = found.median_ms

    def __call__(self, row: int) -> bool:
        """Whether a candidate may be proposed; raises an `UnmeasuredError` where that takes a measurement."""
        if row in self.failed:
            return False
        if self.meter is None:
            return True
        if row not in self._measured:
            raise UnmeasuredError(row)
        return self.bounds.contains(self._measured[row])

    def measured_ms(self, row: int) -> float | None:
        """The latency of a candidate that was let through; `None` where predicted latencies count."""
        return None if self.meter is None else self._measured[row]

    def measure(self, row: int) -> None:
        """Find out the latency of a candidate."""
        assert self.meter is not None
        self._measured[row] = self.meter(self.candidates.sparsity(row)).median_ms
