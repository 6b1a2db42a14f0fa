"""The one exception that a user can cause. The command line prints it as a single line and exits with code 2."""

from __future__ import annotations


class UserError(Exception):
    """What is wrong, where, and what would be right, in one line."""


class MissingExtraError(UserError):
    """A command needs an optional part of the package that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'sparsevit[{extra}]'")
