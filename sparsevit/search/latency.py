"""What a search knows of latencies: a model, from the ledger or fitted now, or measurements where it errs too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsevit.console import console, progress
from sparsevit.latency import fitting, timing
from sparsevit.latency.environment import difference
from sparsevit.latency.model import LatencyModel, OldModelError, error_limit
from sparsevit.search.ledger import Ledger, space_key
from sparsevit.search.objective import PaidLatency

if TYPE_CHECKING:
    from sparsevit.latency.results import Timing
    from sparsevit.search.factory import Supernet
    from sparsevit.sparsity import Sparsity

EXTENSIONS = 2
"""How often more is measured for a model that errs too much, each time for as long as a fit."""

CANDIDATE_SECONDS = 10.0


def known_latencies(supernet: Supernet, ledger: Ledger, limit: float | None = None) -> tuple[LatencyModel, bool]:
    """The latency model of a supernet's target, and whether it is to be trusted.

    It comes from the ledger, or is fitted now and stored there. One that errs by more than the limit is fitted to more
    measurements, up to `EXTENSIONS` times.

    Args:
        supernet: opened on its target.
        ledger: of the same subject.
        limit: mean error on held-out configurations, a fraction; by default what suits the target's engine.
    """
    limit = error_limit(supernet.target) if limit is None else limit
    key = space_key(supernet.space)
    model = _stored(supernet, ledger, key)
    if model is None:
        with progress("latency model", fitting.PROGRESS) as step:
            model = fitting.fit(supernet.backbone, supernet.target, supernet.space, step=step)
        store(supernet, ledger, model)
    while model.error.mean > limit and model.extensions < EXTENSIONS:
        seconds = fitting.default_seconds(model.target)
        console.print(
            f"the latency model errs by {model.error.mean:.1%} in the mean, more than {limit:.1%}: measuring about "
            f"{seconds:.0f} s more ({model.extensions + 1} of at most {EXTENSIONS} times)"
        )
        with progress("latency model", fitting.PROGRESS) as step:
            model = fitting.extend(model, supernet.backbone, seed=2 + 2 * model.extensions, step=step)
        ledger.put_latency_model(key, model.to_json())
    trusted = not model.error.mean > limit
    if not trusted:
        console.print(
            f"note: the latency model errs by {model.error.mean:.1%} in the mean, more than {limit:.1%} (set "
            "latency.error_limit to allow it): a new study measures each candidate before it counts"
        )
    return model, trusted


def store(supernet: Supernet, ledger: Ledger, model: LatencyModel) -> None:
    """Store a latency model in place of what is there, and the dense latency that was measured for it."""
    ledger.put_latency(supernet.space.dense, model.dense)
    ledger.put_latency_model(space_key(supernet.space), model.to_json())


def paid_latency(supernet: Supernet, ledger: Ledger, model: LatencyModel) -> PaidLatency:
    """Measures one candidate at a time; what the device has drifted since the model was fitted is taken out."""

    def measure(sparsity: Sparsity) -> Timing:
        (found,) = timing.measure(
            supernet.backbone,
            supernet.target,
            [sparsity],
            budget_s=CANDIDATE_SECONDS,
            known=model.known(1),
        )
        return found

    return PaidLatency(measure, ledger)


def _stored(supernet: Supernet, ledger: Ledger, key: str) -> LatencyModel | None:
    """The model in the ledger, if this version reads it; says why it is not used otherwise."""
    text = ledger.latency_model(key)
    if text is None:
        for other in ledger.latency_models_elsewhere(key)[:1]:
            _say_elsewhere(supernet, other)
        return None
    try:
        model = LatencyModel.from_json(text)
    except OldModelError:
        console.print(f"latency model of {supernet.target}: stored by another version, so it is fitted again")
        return None
    console.print(f"latency model of {supernet.target}: known, nothing is measured again")
    return model


def _say_elsewhere(supernet: Supernet, text: str) -> None:
    try:
        changed = difference(LatencyModel.from_json(text).environment, supernet.environment)
    except OldModelError:
        changed = "and by another version"
    console.print(
        f"latency model of {supernet.target}: the one stored was fitted in another environment ({changed}), so it is "
        "fitted again"
    )
