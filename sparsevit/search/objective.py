"""One trial: from levels to a sparsity, its accuracy from the ledger or else from the evaluator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optuna.exceptions import TrialPruned
from optuna.trial import Trial

from sparsevit.errors import UserError
from sparsevit.search.ledger import Accuracy, Ledger
from sparsevit.search.results import Bounds
from sparsevit.search.samplers.base import CandidateSampler
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
        metrics = _finite(self.evaluator.accuracy(sparsity, images=images, step=step), sparsity)
        accuracy = Accuracy(metrics, time.monotonic() - start)
        self.ledger.put_accuracy(sparsity, images, accuracy)
        self.evaluations += 1
        return accuracy


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
class Objective:
    """What `study.optimize` calls: returns accuracy (a fraction, to maximise) and latency (ms, to minimise).

    The latency is the predicted one, or the measured one where a latency model is not to be trusted.

    Attributes:
        sampler: proposes candidates, whose latencies are known.
        judge: gives accuracies.
        metric: the metric to maximise.
        images: the first so many judge a trial; `None` for all.
        bounds: of latency, in ms.
        meter: gives measured latencies; `None` to go by the predicted ones.
    """

    sampler: CandidateSampler
    judge: PaidAccuracy
    metric: str
    images: int | None
    bounds: Bounds
    meter: PaidLatency | None = None

    def __call__(self, trial: Trial) -> tuple[float, float]:
        if not trial.relative_params:  # other workers took the last ones since this one counted
            trial.study.stop()
            raise TrialPruned("every configuration within the bounds is taken")
        candidates = self.sampler.candidates
        space = candidates.space
        top = len(space.grid) - 1
        levels = [trial.suggest_int(name, 0, top) for name in space.layer_names]
        sparsity = space.decode(levels)
        trial.set_user_attr(SPARSITY, str(sparsity))
        predicted_ms = float(candidates.ms[candidates.row(sparsity)])
        latency_ms = self.meter(sparsity).median_ms if self.meter else predicted_ms
        set_constraints(trial, latency_ms, self.bounds)
        before = self.judge.evaluations
        accuracy = self.judge(sparsity, self.images)
        metrics = scored(accuracy.metrics, self.metric)
        draw = self.sampler.pop_draw(trial.number)
        trial.set_user_attr(
            OUTCOME,
            {
                "accuracy": metrics,
                "seconds": accuracy.seconds,
                "predicted_ms": predicted_ms,
                "kept": self.judge.ledger.subject.kept(sparsity),
                "source": "evaluated" if self.judge.evaluations > before else "ledger",
                "infeasible": draw.infeasible,
                "duplicate": draw.duplicate,
            },
        )
        return metrics[self.metric], latency_ms


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
