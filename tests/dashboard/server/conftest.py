"""Databases of studies for the server: one that is finished, and what a test makes of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from sparsevit.latency.results import Timing
from sparsevit.search.ledger import Accuracy, Ledger
from sparsevit.search.objective import OUTCOME
from sparsevit.search.record import StudyRecord, Wishes
from sparsevit.search.storage import open_storage
from sparsevit.search.study import open_study
from sparsevit.search.worker import WORKER, this_worker
from sparsevit.sparsity import Sparsity, SparsitySpace

pytest.importorskip("dash")

SPACE = SparsitySpace()
LEVELS = IntDistribution(0, len(SPACE.grid) - 1)
TARGET = "cpu threads=1 float32 batch=1 448x448 eager backbone"


def latency_ms(sparsity: Sparsity) -> float:
    return 20 + sum(10 * (1 - float(value)) for value in sparsity.flat)


def record(max_ms: float = 60.0) -> StudyRecord:
    return StudyRecord(
        fingerprint={}, depths=SPACE.depths, ratios=tuple(str(one) for one in SPACE.grid), size=(448, 448),
        windows=(256, 64, 16, 4), evaluator="e", target=TARGET, environment="v", backbone="b", metric="bbox_mAP",
        metrics=("bbox_mAP", "segm_mAP"), images=40, min_ms=0, max_ms=max_ms, dense_ms=80.0, held_out=(),
        provenance={"seed": "0"},
    )  # fmt: skip


class Made:
    """A database that trials are put into, as a search does."""

    def __init__(self, place: Path | str) -> None:
        """`place`: a file, or the URL of a database."""
        self.url = place if isinstance(place, str) else f"sqlite:///{place}"
        self.storage: RDBStorage = open_storage(self.url)

    def study(self, name: str = "digits", *, asked: int = 30, max_ms: float = 60.0) -> Study:
        wishes = Wishes(trials=asked, confirm_images=120, seed=0)
        return open_study(self.storage, name, record(max_ms), wishes, optuna.samplers.RandomSampler(0))

    def add(self, study: Study, trials: int, *, seed: int = 0, confirm: bool = False, max_ms: float = 60.0) -> None:
        rng = random.Random(seed)
        ledger = Ledger(self.storage.engine, record().subject)
        for number in range(trials):
            sparsity = SPACE.sample(rng)
            ms = latency_ms(sparsity)
            metrics = {"bbox_mAP": 0.3 + ms / 200 + rng.random() / 50, "segm_mAP": 0.3 + ms / 210}
            outcome = {"accuracy": metrics, "seconds": 1.5, "predicted_ms": ms, "infeasible": 2, "duplicate": 1}
            study.add_trial(
                create_trial(
                    params=dict(zip(SPACE.layer_names, SPACE.encode(sparsity), strict=True)),
                    distributions=dict.fromkeys(SPACE.layer_names, LEVELS),
                    values=[metrics["bbox_mAP"], ms],
                    user_attrs={OUTCOME: outcome, WORKER: this_worker()},
                    system_attrs={"constraints": [ms / max_ms - 1]},
                )
            )
            if confirm and number % 5 == 0:
                ledger.put_accuracy(sparsity, 120, Accuracy(metrics, 3.0))
                ledger.put_latency(sparsity, Timing(ms * 1.01, ms, ms * 1.02, 20))

    def run(self, study: Study) -> None:
        """A trial that this process is at."""
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={WORKER: this_worker()}))

    def close(self) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()


@pytest.fixture(scope="session")
def make() -> type[Made]:
    return Made


@pytest.fixture
def made(tmp_path: Path) -> Any:
    database = Made(tmp_path / "study.db")
    yield database
    database.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study that is done, 26 trials, some confirmed, and a second one; to be read only."""
    database = Made(tmp_path_factory.mktemp("finished") / "study.db")
    database.add(database.study(asked=26), 26, confirm=True)
    database.add(database.study("second"), 8, seed=9)
    yield database
    database.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A client of the whole server over databases."""
    from werkzeug.test import Client

    artifacts = tmp_path_factory.mktemp("artifacts")

    class Whole(Client):
        """Reads every answer to its end and closes it."""

        def open(self, *args: Any, **options: Any) -> Any:
            return super().open(*args, buffered=True, **options)

    from sparsevit.dashboard.server.serve import Access, build

    def start(*urls: str, given: Any = None, pages: Path | None = None, **access: Any) -> Client:
        rules = Access(**access).checked()
        return Whole(build(urls, given or {}, rules, artifacts=artifacts, pages=pages))

    return start
