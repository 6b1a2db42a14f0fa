"""A worker's loop: take a trial, pay for its accuracy, finish it, until there are as many as asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any

from optuna.trial import Trial

from sparsevit.errors import UserError, first_line
from sparsevit.search.claims import Claims, Nothing
from sparsevit.search.gate import UnmeasuredError
from sparsevit.search.ledger import Accuracy
from sparsevit.search.objective import Objective, PaidAccuracy, Proposal
from sparsevit.search.patience import UnreachableError, patiently

ERROR = "error"
"""User attribute of a failed trial: why, in one line."""

MOST_FAILURES = 3
"""After so many configurations in a row that could not be evaluated, it is not the configurations."""

POLL_S = 0.5
"""How often a worker looks whether a trial of another one is free again, where all that remain are taken."""


class Ending(Enum):
    """Why a worker stopped taking trials."""

    DONE = auto()
    EXHAUSTED = auto()
    STOPPED = auto()


def run_trials(
    claims: Claims,
    objective: Objective,
    judge: PaidAccuracy,
    *,
    images: int | None,
    asked: int,
    stopped: Callable[[], bool],
    finished: Callable[[tuple[float, float]], None],
) -> Ending:
    """Work on a study until `asked` trials of it are finished, by whomever.

    An evaluation that raises, or gives no finite number, is tried once more; then its trial fails, and the search goes
    on with other configurations.

    Args:
        claims: takes and finishes the trials.
        objective: fills them in.
        judge: gives accuracies.
        images: the first so many judge a trial; `None` for all.
        asked: trials that are to be finished in the end.
        stopped: asked between trials whether to stop.
        finished: called with the values of each trial that this worker finished.

    Raises:
        UserError: if `MOST_FAILURES` configurations in a row could not be evaluated; an `UnreachableError` if the
            database does not come back.
    """
    failures = 0
    while not stopped():
        taken = patiently(lambda: _take(claims, objective, asked))
        if taken is Nothing.OTHERS:
            time.sleep(POLL_S)
        elif taken is Nothing.DONE:
            return Ending.DONE
        elif taken is Nothing.EXHAUSTED:
            return Ending.EXHAUSTED
        else:
            trial, proposal = taken
            before = judge.evaluations
            try:
                accuracy = _twice(partial(judge, proposal.sparsity, images))
            except UnreachableError:
                raise  # nothing can be written of the trial now: the next worker finds that nobody is at it
            except Exception as error:
                _fail(claims, trial, first_line(error))
                objective.gate.failed.add(proposal.row)
                failures += 1
                if failures == MOST_FAILURES:
                    raise _cause(error, proposal) from error
                continue
            except BaseException:
                _fail(claims, trial, "interrupted")
                raise
            failures = 0
            values = objective.values(proposal, accuracy)
            attributes = objective.outcome(proposal, accuracy, evaluated=judge.evaluations > before)
            if patiently(partial(claims.finish, trial, attributes, values)):
                finished(values)
    return Ending.STOPPED


def _take(claims: Claims, objective: Objective, asked: int) -> tuple[Trial, Proposal] | Nothing:
    while True:
        try:
            return claims.take(asked, objective.fill)
        except UnmeasuredError as missing:
            row = missing.row
        objective.gate.measure(row)


def _twice(judge: Callable[[], Accuracy]) -> Accuracy:
    try:
        return judge()
    except Exception as error:
        if isinstance(error, UnreachableError):
            raise
    return judge()  # out here nothing holds on to the memory of the first try


def _fail(claims: Claims, trial: Trial, reason: str) -> None:
    attributes: dict[str, Any] = {ERROR: reason}
    patiently(lambda: claims.finish(trial, attributes, None))


def _cause(error: Exception, proposal: Proposal) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(
        f"the evaluator failed for {MOST_FAILURES} configurations in a row, the last one {proposal.sparsity}: "
        f"{first_line(error)}"
    )
