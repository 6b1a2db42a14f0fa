"""Waits for a database that is away or full for a while, so that nothing that was paid for is lost with it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from sparsevit.console import console
from sparsevit.errors import UserError

PATIENCE_S = 600.0
"""A database may be away, or its disk full, for so long."""

LONGEST_WAIT_S = 5.0
AWAY = (sa.exc.SQLAlchemyError, StorageInternalError)
"""What a database that is away or full makes of a call, though mistakes of ours are among them."""

_OURS = (sa.exc.ProgrammingError, sa.exc.DataError, sa.exc.IntegrityError)  # mistakes that waiting does not mend

Found = TypeVar("Found")


class UnreachableError(UserError):
    """A database that cannot be reached now, and perhaps can in a while."""


def patiently(action: Callable[[], Found]) -> Found:
    """What `action` returns, called again for as long as the database fails it, ever less often.

    Raises:
        UnreachableError: if the database does not recover within `PATIENCE_S`.
    """
    wait, end = 0.1, monotonic() + PATIENCE_S
    told = False
    while True:
        try:
            return action()
        except UnreachableError as error:
            reason = str(error)
            if monotonic() > end:
                raise
        except AWAY as error:
            cause = error if isinstance(error, sa.exc.SQLAlchemyError) else (error.__cause__ or error)
            if isinstance(cause, _OURS):
                raise
            reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
            if monotonic() > end:
                raise UnreachableError(f"the database failed for {PATIENCE_S / 60:.0f} minutes: {reason}") from error
        if not told:
            told = True
            console.print(
                f"the database fails ({reason}): trying again for {PATIENCE_S / 60:.0f} minutes, nothing is lost",
                markup=False,
            )
        sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)
