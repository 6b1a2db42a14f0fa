"""Studies for figures and reports: a finished one, an empty one, one where nothing met the bounds."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sparsevit.search.results import Bounds, HeldOut, Measured, Reference, StudyResults, TrialResult
from sparsevit.sparsity import Sparsity, SparsitySpace

SPACE = SparsitySpace()
COST_MS = (4.0, 3.0, 2.6, 2.6, 2.6, 1.2)
LOSS = (0.004, 0.050, 0.020, 0.016, 0.012, 0.030)


def latency_ms(sparsity: Sparsity) -> float:
    return 6.0 + sum(cost * (1 - float(value)) for cost, value in zip(COST_MS, sparsity.flat, strict=True))


def accuracy(sparsity: Sparsity, shift: float = 0.0) -> dict[str, float]:
    lost = sum(loss * float(value) ** 2 for loss, value in zip(LOSS, sparsity.flat, strict=True))
    return {"bbox_mAP": 0.812 - lost + shift, "segm_mAP": 0.713 - 0.9 * lost + shift}


def measured(sparsity: Sparsity, error: float) -> Measured:
    median = latency_ms(sparsity) * (1 + error)
    return Measured(median, median * 0.99, median * 1.012)


def make_results(trials: int = 60, *, on_front: int = 8, max_ms: float = 18.5) -> StudyResults:
    rng = random.Random(7)
    bounds = Bounds(0.0, max_ms)
    start = datetime(2025, 5, 1, 12, tzinfo=UTC)
    finished = []
    for number in range(trials):
        sparsity = SPACE.sample(rng)
        noisy = accuracy(sparsity, rng.gauss(0, 0.001))
        predicted = latency_ms(sparsity)
        finished.append(
            TrialResult(
                number=number, sparsity=sparsity, accuracy=noisy, predicted_ms=predicted,
                feasible=bounds.contains(predicted), seconds=2.5, started=start + timedelta(seconds=3 * number),
            )
        )  # fmt: skip
    front: list[TrialResult] = []
    for trial in sorted((one for one in finished if one.feasible), key=lambda one: one.predicted_ms):
        if not front or trial.accuracy["bbox_mAP"] > front[-1].accuracy["bbox_mAP"]:
            front.append(trial)
    front = [
        replace(one, confirmed=accuracy(one.sparsity, -0.002), measured=measured(one.sparsity, rng.gauss(0, 0.01)))
        for one in front[-on_front:]
    ]
    by_number = {one.number: one for one in front}
    labelled = {"dense": 0, "uniform 30 %": 0.3, "uniform 60 %": 0.6}
    return StudyResults(
        name="digits", target="cpu float32, batch 1, 448×448, eager, backbone", metric="bbox_mAP",
        metrics=("bbox_mAP", "segm_mAP"), bounds=bounds,
        trials=[by_number.get(one.number, one) for one in finished], trials_asked=trials,
        layer_names=SPACE.layer_names, front=front, best=front[-1] if front else None,
        references=[
            Reference(label, one, latency_ms(one), accuracy(one, -0.002), measured(one, 0.004))
            for label, one in ((label, SPACE.uniform(value)) for label, value in labelled.items())
        ],
        held_out=[
            HeldOut(one, latency_ms(one), latency_ms(one) * (1 + error))
            for one, error in ((SPACE.sample(rng), rng.gauss(0, 0.008)) for _ in range(20))
        ],
        failed=1, infeasible_avoided=412, duplicates_avoided=9, images_search=150, images_confirm=500,
        provenance={"seed": "0", "torch": "2.11.0", "device": "a CPU"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished() -> StudyResults:
    results = make_results()
    assert len(results.front) == 8
    return results


@pytest.fixture(scope="session")
def empty(finished: StudyResults) -> StudyResults:
    return replace(finished, trials=(), front=(), best=None, references=(), held_out=())


@pytest.fixture(scope="session")
def infeasible(finished: StudyResults) -> StudyResults:
    """No trial within the bounds, dense measured."""
    trials = [replace(one, feasible=False, confirmed=None, measured=None) for one in finished.trials]
    return replace(finished, trials=trials, front=(), best=None, bounds=Bounds(0.0, 7.0))
