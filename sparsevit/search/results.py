"""A study as plain values: what the command line prints, figures draw and reports tabulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sparsevit.latency.results import HeldOut, Measured
from sparsevit.sparsity import Sparsity

__all__ = ["Bounds", "HeldOut", "Measured", "Reference", "Running", "StudyResults", "Taken", "TrialResult"]


@dataclass(frozen=True)
class Bounds:
    """Latency bounds in ms; a lower bound of 0 is none."""

    min_ms: float
    max_ms: float

    def contains(self, latency_ms: float) -> bool:
        return self.min_ms <= latency_ms <= self.max_ms


@dataclass(frozen=True)
class TrialResult:
    """One finished trial.

    Predicted and measured latencies are never mixed; the same holds for accuracies of the search images (`accuracy`)
    and of the confirmation images (`confirmed`).
    """

    number: int
    sparsity: Sparsity
    accuracy: Mapping[str, float]
    predicted_ms: float
    feasible: bool
    seconds: float
    started: datetime | None = None
    worker: str = ""
    confirmed: Mapping[str, float] | None = None
    measured: Measured | None = None
    searched_ms: float | None = None
    """Measured latency that the search went by, where it measured each candidate; `None` where it went by the model."""
    infeasible: int = 0
    """Children outside the bounds that were drawn, and not evaluated, before this one."""
    duplicates: int = 0
    """Children that were known already, and not evaluated again, before this one."""

    @property
    def judged_ms(self) -> float:
        """The latency that the search went by, measured or else predicted."""
        return self.predicted_ms if self.searched_ms is None else self.searched_ms


@dataclass(frozen=True)
class Running:
    """A trial that a worker is at."""

    number: int
    started: datetime | None
    worker: str


@dataclass(frozen=True)
class Taken:
    """A latency of the study's target as it was measured at some time (UTC), beside what the model says of it today."""

    sparsity: Sparsity
    measured: Measured
    predicted_ms: float
    fitted: bool
    """Whether the latency model was fitted to this very configuration."""
    at: datetime | None = None


@dataclass(frozen=True)
class Reference:
    """A configuration shown beside the front, such as the dense subnet or a uniform ratio."""

    label: str
    sparsity: Sparsity
    predicted_ms: float
    accuracy: Mapping[str, float] | None = None
    measured: Measured | None = None


@dataclass(frozen=True)
class StudyResults:
    """Everything known about one study, best first where order matters."""

    name: str
    target: str
    metric: str
    metrics: Sequence[str]
    bounds: Bounds
    trials: Sequence[TrialResult]
    trials_asked: int
    layer_names: Sequence[str]
    front: Sequence[TrialResult] = ()
    best: TrialResult | None = None
    references: Sequence[Reference] = ()
    held_out: Sequence[HeldOut] = ()
    running: Sequence[Running] = ()
    timings: Sequence[Taken] = ()
    failed: int = 0
    infeasible_avoided: int = 0
    duplicates_avoided: int = 0
    images_search: int | None = None
    images_confirm: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
