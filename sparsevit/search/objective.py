"""One trial: from levels to a sparsity, its accuracy from the ledger or else from the evaluator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import Trial

from sparsevit.console import console
from sparsevit.errors import UserError
from sparsevit.latency.memory import is_out_of_memory
from sparsevit.search.claims import NothingLeftError
from sparsevit.search.gate import Gate
from sparsevit.search.ledger import Accuracy, Ledger, Subject
from sparsevit.search.results import Bounds
from sparsevit.search.samplers.base import CandidateSampler, Draw
from sparsevit.search.score import scored
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from sparsevit.console import Step
    from sparsevit.latency.results import Timing
    from sparsevit.search.evaluator import Evaluator

OUTCOME = "sparsevit"
"""User attribute of a trial: all that is known about it besides its values, as one JSON object."""

SPARSITY = "sparsity"
"""User attribute of a trial: its configuration as people read it. The view of trials shows it."""

Judge = Callable[[Sparsity, int | None], Accuracy]
"""The accuracy of a sparsity on the first so many images."""


@dataclass
class PaidAccuracy:
    """Asks the ledger, and pays the evaluator only for what is not there. Counts what was paid for."""

    evaluator: Evaluator
    ledger: Ledger
    evaluations: int = field(default=0, init=False)

    def __call__(self, sparsity: Sparsity, images: int | None, step: Step | None = None) -> Accuracy:
        """Raises a UserError if the evaluator hands back something else than finite numbers."""
        known = self.ledger.accuracy(sparsity, images)
        if known is not None:
            return known
        start = time.monotonic()
        metrics = _finite(self._ask(sparsity, images, step), sparsity)
        accuracy = Accuracy(metrics, time.monotonic() - start)
        self.ledger.put_accuracy(sparsity, images, accuracy)
        self.evaluations += 1
        return accuracy

    def _ask(self, sparsity: Sparsity, images: int | None, step: Step | None) -> Mapping[str, float]:
        """Where memory does not suffice, and the evaluator can, with ever smaller batches."""
        from sparsevit.search.evaluator import Shrinkable

        while True:
            try:
                return self.evaluator.accuracy(sparsity, images=images, step=step)
            except Exception as error:
                if not is_out_of_memory(error) or not isinstance(self.evaluator, Shrinkable):
                    raise
                if not self.evaluator.smaller_batch():
                    raise
            console.print(f"{sparsity} ran out of memory: from now on in smaller batches")


@dataclass
class PaidLatency:
    """Asks the ledger, and measures on the target only what is not there.

    Attributes:
        measure: the latency of a sparsity on the target.
        ledger: keeps what was measured.
    """

    measure: Callable[[Sparsity], Timing]
    ledger: Ledger

    def __call__(self, sparsity: Sparsity) -> Timing:
        """Where another worker was first, its figure counts."""
        known = self.ledger.latencies([sparsity])[0]
        if known is None:
            self.ledger.put_latency(sparsity, self.measure(sparsity))
            known = self.ledger.latencies([sparsity])[0]
        assert known is not None
        return known


@dataclass(frozen=True)
class Proposal:
    """A configuration that a trial has taken, and what is known of it before its accuracy.

    Attributes:
        sparsity: the configuration.
        row: which candidate it is.
        predicted_ms: by the latency model.
        latency_ms: what the search goes by: the predicted latency, or the measured one where the model is not to be
            trusted.
        draw: how it was found.
    """

    sparsity: Sparsity
    row: int
    predicted_ms: float
    latency_ms: float
    draw: Draw


@dataclass(frozen=True)
class Objective:
    """Fills a trial in when it is taken, and says what is stored when it is finished.

    Attributes:
        sampler: proposes candidates, whose latencies are known.
        subject: what figures in the ledger are of.
        metric: the metric to maximise; latency is minimised.
        bounds: of latency, in ms.
        gate: knows measured latencies, where they count.
    """

    sampler: CandidateSampler
    subject: Subject
    metric: str
    bounds: Bounds
    gate: Gate

    def fill(self, trial: Trial) -> Proposal:
        """Parameters and constraints of a new trial; raises a `NothingLeftError` where no configuration is free."""
        if not trial.relative_params:
            raise NothingLeftError
        candidates = self.sampler.candidates
        space = candidates.space
        top = len(space.grid) - 1
        levels = [trial.suggest_int(name, 0, top) for name in space.layer_names]
        sparsity = space.decode(levels)
        trial.set_user_attr(SPARSITY, str(sparsity))
        row = int(candidates.rows([levels])[0])
        predicted_ms = float(candidates.ms[row])
        latency_ms = self.gate.measured_ms(row) or predicted_ms
        set_constraints(trial, latency_ms, self.bounds)
        draw = self.sampler.pop_draw(trial.number)
        return Proposal(sparsity, row, predicted_ms, latency_ms, draw)

    def outcome(self, proposal: Proposal, accuracy: Accuracy, *, evaluated: bool) -> dict[str, Any]:
        """User attributes of a finished trial."""
        outcome = {
            "accuracy": scored(accuracy.metrics, self.metric),
            "seconds": accuracy.seconds,
            "predicted_ms": proposal.predicted_ms,
            "kept": self.subject.kept(proposal.sparsity),
            "source": "evaluated" if evaluated else "ledger",
            "infeasible": proposal.draw.infeasible,
            "duplicate": proposal.draw.duplicate,
        }
        return {OUTCOME: outcome}

    def values(self, proposal: Proposal, accuracy: Accuracy) -> tuple[float, float]:
        """Accuracy (a fraction, to maximise) and latency (ms, to minimise)."""
        return scored(accuracy.metrics, self.metric)[self.metric], proposal.latency_ms


def set_constraints(trial: Trial, latency_ms: float, bounds: Bounds) -> None:
    """Store how far the bounds are met, as fractions of them; at most 0 is feasible.

    A trial without constraints counts as feasible, so this comes before anything that may fail. Optuna reads one
    attribute per constraint, optuna-dashboard a list of all.
    """
    constraints = {"latency.max": latency_ms / bounds.max_ms - 1}
    if bounds.min_ms > 0:
        constraints["latency.min"] = 1 - latency_ms / bounds.min_ms
    for name, value in constraints.items():
        trial.set_constraint(name, value)
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", list(constraints.values()))


def _finite(metrics: Mapping[str, float], sparsity: Sparsity) -> dict[str, float]:
    found = {name: float(value) for name, value in metrics.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            raise UserError(f"the evaluator gives {name} = {value} for {sparsity}: it has to be a fraction")
    return found
