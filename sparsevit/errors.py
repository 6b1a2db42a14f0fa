"""The one exception that a user can cause. The command line prints it as a single line and exits with code 2."""

from __future__ import annotations

import errno
from collections.abc import Sequence

NO_ROOM = errno.ENOSPC, errno.EDQUOT
"""Numbers of the errors that say that a disk is full."""


class UserError(Exception):
    """What is wrong, where, and what would be right, in one line.

    `details` are lines that list what that line only counts; the command line prints them before it.
    """

    def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class MissingExtraError(UserError):
    """A command needs an optional part of the package that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'sparsevit[{extra}]'")


def first_line(error: BaseException) -> str:
    """An error of a library in one line: its type, and the beginning of what it says, or of what it was raised for."""
    while not str(error).strip() and error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
