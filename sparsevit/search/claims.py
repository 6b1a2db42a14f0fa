"""How a worker takes a trial and hands it back: one transaction each, so that a budget is exact and nothing is lost.

While one worker takes a trial, others wait for theirs: what is done and what is being worked at is certain then, and no
two of them take the same configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from sparsevit.search.tables import workers
from sparsevit.search.trial_storage import TrialStorage
from sparsevit.search.worker import WORKER, Watch, this_worker

Filled = TypeVar("Filled")

_trials = sa.table("trials", sa.column("trial_id"), sa.column("study_id"), sa.column("state"))
_state = sa.cast(_trials.c.state, sa.Text)


class Nothing(Enum):
    """Why there is no trial to take."""

    DONE = auto()
    """As many are finished as were asked for."""
    OTHERS = auto()
    """The rest is in the hands of other workers, who may still drop it."""
    EXHAUSTED = auto()
    """No configuration is left."""


class NoTrialError(Exception):
    """Raised by what fills a trial in: there is to be none, for now."""


class NothingLeftError(NoTrialError):
    """No configuration is free."""


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
        self._settled = 0, 0  # the study's first trials that are all finished: how many, and how many are complete

    @property
    def study(self) -> Study:
        if self._study is None:
            storage = TrialStorage(self._storage)
            self._study = optuna.load_study(study_name=self._name, storage=storage, sampler=self._sampler)
            self._settled = 0, 0
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
            with _storage_of(study).transaction() as connection:
                taken = self._take(connection, study, asked, fill)
        except NoTrialError as error:
            self._study, taken = None, error
        except UpdateFinishedTrialError:  # one whose worker was taken for dead is finished after all: count again
            self._study = None
            return self.take(asked, fill)
        except BaseException:
            self._study = None  # what it remembers did not happen
            raise
        if isinstance(taken, NothingLeftError):
            return Nothing.OTHERS if self._at_work() else Nothing.EXHAUSTED
        if isinstance(taken, NoTrialError):
            raise taken
        return taken

    def finish(self, trial: Trial, attributes: dict[str, Any], values: Sequence[float] | None) -> bool:
        """Store the outcome of a trial, complete with `values`, failed without; whether the trial was still ours.

        It is not where others took this worker for dead, or where an earlier try reached the database after all.
        """
        storage = _storage_of(trial.study)
        try:
            with storage.transaction():
                storage.hold(trial._trial_id)
                for key, value in attributes.items():
                    trial.set_user_attr(key, value)
                trial.study.tell(trial, values, TrialState.FAIL if values is None else TrialState.COMPLETE)
        except UpdateFinishedTrialError:
            return False
        return True

    def _take(
        self, connection: sa.Connection, study: Study, asked: int, fill: Callable[[Trial], Filled]
    ) -> tuple[Trial, Filled] | Nothing | NoTrialError:
        storage = _storage_of(study)
        storage.lock(study._study_id)
        done, running = self._progress(study)
        living = self._fail_dead(connection, study, running)
        if done >= asked:
            return Nothing.DONE
        if done + living >= asked:
            return Nothing.OTHERS
        trial = study.ask()
        try:
            return trial, fill(trial)
        except NoTrialError as error:
            if not storage.withdraw(trial._trial_id):
                raise
            return error

    def _progress(self, study: Study) -> tuple[int, list[FrozenTrial]]:
        """How many trials are complete, and those that are running."""
        trials = study.get_trials(deepcopy=False)
        length, done = self._settled
        while length < len(trials) and trials[length].state.is_finished():
            done += trials[length].state == TrialState.COMPLETE
            length += 1
        self._settled = length, done
        rest = trials[length:]
        running = [one for one in rest if one.state == TrialState.RUNNING]
        return done + sum(one.state == TrialState.COMPLETE for one in rest), running

    def _fail_dead(self, connection: sa.Connection, study: Study, running: Sequence[FrozenTrial]) -> int:
        """Fail the running trials whose worker has ended, and any of this process; how many others are running."""
        if not running:
            return 0
        # A trial without a name was made in the instant before its worker wrote it: nobody's.
        others = {one._trial_id: one.user_attrs.get(WORKER, "") for one in running}
        beats = {worker: beat for worker, beat in connection.execute(sa.select(workers.c.worker, workers.c.beat))}
        dead = self._watch.look(beats, set(others.values()) - {this_worker()}) | {this_worker()}
        lost = [trial for trial, name in others.items() if name in dead]
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


def _storage_of(study: Study) -> TrialStorage:
    assert isinstance(study._storage, TrialStorage)
    return study._storage
