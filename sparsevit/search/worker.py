"""Who works on a trial, and whether they still live."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.study import Study

WORKER = "worker"
"""User attribute of a trial: `host:process`."""


def this_worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(worker: str) -> bool:
    """Whether a worker of this host has ended; of other hosts only their missing heartbeat tells."""
    host, _, process = worker.rpartition(":")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def fail_dead_trials(study: Study, *, grace_s: float) -> int:
    """Fail the running trials whose worker is gone, so that their configurations are free again; returns how many.

    Call it before this process starts trials of its own: any that runs under its number belonged to another one.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    from sparsevit.search.storage import accept_experimental

    with accept_experimental():
        fail_stale_trials(study)
    failed = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if worker is None:  # died in the instant between being made and being marked
            start = trial.datetime_start
            dead = start is None or datetime.now() - start > timedelta(seconds=grace_s)
        else:
            dead = worker == this_worker() or is_dead(worker)
        if dead:
            try:
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                failed += 1
            except UpdateFinishedTrialError:
                continue  # another worker saw it too
    return failed
