"""How a worker takes a trial and hands it back: one transaction each, so that a budget is exact and nothing is lost.

While one worker takes a trial, others wait for theirs: what is done and what is being worked at is certain then, and no
two of them take the same configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState

from sparsevit.search.storage import packed
from sparsevit.search.tables import workers
from sparsevit.search.worker import WORKER, Watch, this_worker

Filled = TypeVar("Filled")

_studies = sa.table("studies", sa.column("study_id"))
_trials = sa.table("trials", sa.column("trial_id"), sa.column("study_id"), sa.column("state"))
_attributes = sa.table("trial_user_attributes", sa.column("trial_id"), sa.column("key"), sa.column("value_json"))
_state = sa.cast(_trials.c.state, sa.Text)


class Nothing(Enum):
    """Why there is no trial to take."""

    DONE = auto()
    """As many are finished as were asked for."""
    OTHERS = auto()
    """The rest is in the hands of other workers, who may still drop it."""
    EXHAUSTED = auto()
    """No configuration is left."""


class NothingLeftError(Exception):
    """Raised by what fills a trial in: no configuration is free."""


class Claims:
    """Takes and finishes the trials of one study for this process, which is at one trial at a time."""

    def __init__(self, storage: RDBStorage, name: str, sampler: BaseSampler, watch: Watch) -> None:
        """See the class.

        Args:
            storage: holds the study.
            name: of the study.
            sampler: of its trials.
            watch: tells whose trials are to be done again.
        """
        self._storage, self._name, self._sampler, self._watch = storage, name, sampler, watch
        self._study: Study | None = None

    @property
    def study(self) -> Study:
        if self._study is None:
            self._study = optuna.load_study(study_name=self._name, storage=self._storage, sampler=self._sampler)
        return self._study

    def take(self, asked: int, fill: Callable[[Trial], Filled]) -> tuple[Trial, Filled] | Nothing:
        """A new trial with all that `fill` gives it, which is everything others need to know; or why there is none.

        Trials of workers that have ended fail first, so that their configurations are free again. If `fill` raises,
        there was no trial.

        Args:
            asked: trials that are to be finished in the end.
            fill: called with the trial, in the transaction: it must neither take long nor use the database by itself.
                It raises `NothingLeftError` where no configuration is free.
        """
        study = self.study
        try:
            with packed(self._storage) as connection:
                return self._take(connection, study, asked, fill)
        except NothingLeftError:
            self._study = None
            return Nothing.OTHERS if self._at_work() else Nothing.EXHAUSTED
        except BaseException:
            self._study = None  # what it remembers did not happen
            raise

    def finish(self, trial: Trial, attributes: dict[str, Any], values: Sequence[float] | None) -> bool:
        """Store the outcome of a trial, complete with `values`, failed without; whether the trial was still ours.

        It is not where others took this worker for dead, or where an earlier try reached the database after all.
        """
        try:
            with packed(self._storage):
                for key, value in attributes.items():
                    trial.set_user_attr(key, value)
                trial.study.tell(trial, values, TrialState.FAIL if values is None else TrialState.COMPLETE)
        except UpdateFinishedTrialError:
            return False
        return True

    def _take(
        self, connection: sa.Connection, study: Study, asked: int, fill: Callable[[Trial], Filled]
    ) -> tuple[Trial, Filled] | Nothing:
        connection.execute(
            sa.select(_studies.c.study_id).where(_studies.c.study_id == study._study_id).with_for_update()
        )
        living = self._fail_dead(connection, study)
        mine = (_trials.c.study_id == study._study_id, _state == TrialState.COMPLETE.name)
        done = connection.execute(sa.select(sa.func.count()).select_from(_trials).where(*mine)).scalar_one()
        if done >= asked:
            return Nothing.DONE
        if done + living >= asked:
            return Nothing.OTHERS
        trial = study.ask()
        return trial, fill(trial)

    def _fail_dead(self, connection: sa.Connection, study: Study) -> int:
        """Fail the running trials whose worker has ended, and any of this process; how many others are running."""
        names = _attributes.c.trial_id == _trials.c.trial_id, _attributes.c.key == WORKER
        rows = connection.execute(
            sa.select(_trials.c.trial_id, _attributes.c.value_json)
            .select_from(_trials.outerjoin(_attributes, sa.and_(*names)))
            .where(_trials.c.study_id == study._study_id, _state == TrialState.RUNNING.name)
        ).all()
        if not rows:
            return 0
        others = {trial: None if name is None else json.loads(name) for trial, name in rows}
        beats = {worker: beat for worker, beat in connection.execute(sa.select(workers.c.worker, workers.c.beat))}
        # A trial without a name was made in the instant before its worker wrote it: nobody's.
        dead = self._watch.look(beats, {name or "" for name in others.values()} - {this_worker()}) | {this_worker()}
        lost = [trial for trial, name in others.items() if (name or "") in dead]
        for trial in lost:
            study._storage.set_trial_state_values(trial, TrialState.FAIL)
        connection.execute(workers.delete().where(workers.c.worker.in_(dead - {this_worker()})))
        return len(others) - len(lost)

    def _at_work(self) -> int:
        """How many trials are being worked at."""
        query = sa.select(sa.func.count()).select_from(_trials)
        running = query.where(_trials.c.study_id == self.study._study_id, _state == TrialState.RUNNING.name)
        with self._storage.engine.connect() as connection:
            return int(connection.execute(running).scalar_one())
