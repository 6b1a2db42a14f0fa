"""Optuna's storage as a worker uses it: a transaction reads the trials once and writes once what becomes of its own.

By itself Optuna takes more than eighty statements for a trial, most of which read again what this very process wrote.
Here the trials that a transaction holds stay in memory until its end; all else is Optuna's, and so are the tables.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.storages import RDBStorage, _CachedStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from sparsevit.search.storage import packed

Rows = dict[tuple[str, str | int], dict[str, Any]]
"""What stands in tables about a trial: columns, by table and by what tells a trial's rows there apart."""

FINISHED = [state for state in TrialState if state.is_finished()]

_tables = models.BaseModel.metadata.tables
_studies, _trials = _tables["studies"], _tables["trials"]
_keys = {
    "trial_params": "param_name",
    "trial_values": "objective",
    "trial_user_attributes": "key",
    "trial_system_attributes": "key",
}


@dataclass
class _Held:
    """A running trial that nobody else writes to before the transaction ends: as it is to be, and the rows it has."""

    trial: FrozenTrial
    rows: Rows


@dataclass
class _Open:
    """A transaction.

    Attributes:
        connection: its own.
        locked: studies that nobody else adds trials to meanwhile.
        read: studies whose trials are in memory.
        held: the trials it holds, by their id.
    """

    connection: sa.Connection
    locked: set[int] = field(default_factory=set)
    read: set[int] = field(default_factory=set)
    held: dict[int, _Held] = field(default_factory=dict)


class TrialStorage(_CachedStorage):
    """A storage for Optuna, which outside `transaction` is the one that Optuna makes of a database by itself.

    A transaction is for one thread. Where one fails, what is in memory may never have happened: make a new storage.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._open: _Open | None = None

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All that Optuna reads and writes meanwhile happens as a whole or not; yields the connection."""
        with packed(self._backend) as connection:
            self._open = _Open(connection)
            try:
                yield connection
                self._write()
            finally:
                self._open = None

    def lock(self, study_id: int) -> None:
        """Until the transaction ends, whoever else locks this study, as one does to add a trial, waits."""
        assert self._open is not None
        self._open.connection.execute(
            sa.select(_studies.c.study_id).where(_studies.c.study_id == study_id).with_for_update()
        )
        self._open.locked.add(study_id)
        self._open.read.discard(study_id)

    def hold(self, trial_id: int) -> None:
        """Keep what becomes of a running trial in memory until the transaction ends.

        Raises:
            UpdateFinishedTrialError: if it is finished.
        """
        assert self._open is not None
        state = self._open.connection.execute(
            sa.select(_trials.c.state).where(_trials.c.trial_id == trial_id).with_for_update()
        ).scalar_one()
        self.check_trial_is_updatable(trial_id, state)
        known = self._trial_id_to_study_id_and_number.get(trial_id)
        trial = self._backend.get_trial(trial_id) if known is None else self._studies[known[0]].trials[known[1]]
        self._open.held[trial_id] = _Held(_copy(trial), _rows(trial))

    def withdraw(self, trial_id: int) -> bool:
        """Unmake the trial that this transaction made last; False, and nothing done, if it made no such trial."""
        assert self._open is not None
        held = self._open.held.pop(trial_id, None)
        if held is None:
            return False
        study_id, number = self._trial_id_to_study_id_and_number.pop(trial_id)
        del self._study_id_and_number_to_trial_id[study_id, number]
        del self._studies[study_id].trials[number]
        self._studies[study_id].unfinished_trial_ids.discard(trial_id)
        for name in (*_keys, "trial_intermediate_values"):
            self._open.connection.execute(_tables[name].delete().where(_tables[name].c.trial_id == trial_id))
        self._open.connection.execute(_trials.delete().where(_trials.c.trial_id == trial_id))
        return True

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if self._open is None or template_trial is not None:
            self._before_others()
            return super().create_new_trial(study_id, template_trial)
        if study_id not in self._open.locked:
            self.lock(study_id)
        self._read_trials_from_remote_storage(study_id)
        study, now = self._studies[study_id], datetime.now(UTC)
        row = {
            "study_id": study_id,
            "number": len(study.trials),
            "state": TrialState.RUNNING,
            "datetime_start": now.replace(tzinfo=None),
        }
        made = self._open.connection.execute(_trials.insert().values(row)).inserted_primary_key
        assert made is not None
        trial_id: int = made[0]
        trial = FrozenTrial(
            number=len(study.trials),
            state=TrialState.RUNNING,
            value=None,
            datetime_start=now.astimezone().replace(tzinfo=None),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=trial_id,
        )
        self._open.held[trial_id] = _Held(trial, {})
        self._add_trials_to_cache(study_id, [trial])
        study.unfinished_trial_ids.add(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._mine(trial_id)
        if trial is None:
            return super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        study = self._studies[self._trial_id_to_study_id_and_number[trial_id][0]]
        known = study.param_distribution.get(param_name)
        if known is None:
            others = (one.distributions[param_name] for one in study.trials.values() if param_name in one.distributions)
            known = study.param_distribution[param_name] = next(others, distribution)
        check_distribution_compatibility(known, distribution)
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._mine(trial_id)
        if trial is None:
            return super().set_trial_user_attr(trial_id, key, value)
        trial.user_attrs[key] = json.loads(json.dumps(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._mine(trial_id)
        if trial is None:
            return super().set_trial_system_attr(trial_id, key, value)
        trial.system_attrs[key] = json.loads(json.dumps(value))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        trial = self._mine(trial_id)
        if trial is not None:
            trial.intermediate_values[step] = intermediate_value
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        trial = self._mine(trial_id)
        if trial is None:
            return super().set_trial_state_values(trial_id, state, values)
        if state == TrialState.RUNNING:
            return False  # it was before
        if values is not None:
            trial.values = list(values)
        trial.state = state
        trial.datetime_complete = datetime.now() if state.is_finished() else None
        return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        held = None if self._open is None else self._open.held.get(trial_id)
        return super().get_trial(trial_id) if held is None else _copy(held.trial)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As Optuna's, which sorts all trials every time."""
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            study = self._studies[study_id]
            found = list(study.trials.values())  # read, and so kept, in the order of their numbers
            if states is not None and not any(state in states for state in FINISHED):
                unfinished = sorted(self._trial_id_to_study_id_and_number[one][1] for one in study.unfinished_trial_ids)
                found = [study.trials[number] for number in unfinished]
            if states is not None:
                found = [trial for trial in found if trial.state in states]
            return copy.deepcopy(found) if deepcopy else found

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """Within a transaction once, and again where others' methods have written to trials meanwhile."""
        if self._open is not None and study_id in self._open.read:
            return
        self._write()
        super()._read_trials_from_remote_storage(study_id)
        if self._open is not None:
            self._open.read.add(study_id)
            for trial_id, held in self._open.held.items():
                of, number = self._trial_id_to_study_id_and_number[trial_id]
                self._studies[of].trials[number] = held.trial

    def _mine(self, trial_id: int) -> FrozenTrial | None:
        """A trial that the transaction holds, to change it; `None` for others, which change in the database alone."""
        held = None if self._open is None else self._open.held.get(trial_id)
        if held is None:
            self._before_others()
            return None
        self.check_trial_is_updatable(trial_id, held.trial.state)
        return held.trial

    def _before_others(self) -> None:
        """What is in memory comes first where the database is about to change, and is read again after."""
        self._write()
        if self._open is not None:
            self._open.read.clear()

    def _write(self) -> None:
        """Store what has become of the trials that the transaction holds."""
        if self._open is None:
            return
        execute = self._open.connection.execute
        for trial_id, held in self._open.held.items():
            trial, rows = held.trial, _rows(held.trial)
            for name, key in _keys.items():
                table = _tables[name]
                changed = [(at, row) for at, row in rows.items() if at[0] == name and row != held.rows.get(at)]
                before = [at[1] for at, _ in changed if at in held.rows]
                if before:
                    execute(table.delete().where(table.c.trial_id == trial_id, table.c[key].in_(before)))
                if changed:
                    execute(table.insert(), [{"trial_id": trial_id, key: at[1], **row} for at, row in changed])
            held.rows = rows
            if trial.datetime_complete is not None:
                complete = trial.datetime_complete.astimezone(UTC).replace(tzinfo=None)
                mine = _trials.update().where(_trials.c.trial_id == trial_id)
                execute(mine.values(state=trial.state, datetime_complete=complete))


def _rows(trial: FrozenTrial) -> Rows:
    rows: Rows = {}
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        rows["trial_params", name] = {
            "param_value": distribution.to_internal_repr(value),
            "distribution_json": distribution_to_json(distribution),
        }
    for objective, value in enumerate(trial.values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        rows["trial_values", objective] = {"value": stored, "value_type": kind}
    for key, value in trial.user_attrs.items():
        rows["trial_user_attributes", key] = {"value_json": json.dumps(value)}
    for key, value in trial.system_attrs.items():
        rows["trial_system_attributes", key] = {"value_json": json.dumps(value)}
    return rows


def _copy(trial: FrozenTrial) -> FrozenTrial:
    """One whose parameters and attributes change by themselves."""
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=trial.values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=dict(trial.params),
        distributions=dict(trial.distributions),
        user_attrs=dict(trial.user_attrs),
        system_attrs=dict(trial.system_attrs),
        intermediate_values=dict(trial.intermediate_values),
        trial_id=trial._trial_id,
    )
