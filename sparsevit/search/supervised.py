"""The process of one worker of a pool: reads what to do from the pool, and stops when the pool is gone."""

from __future__ import annotations

import os
import pickle
import sys

from sparsevit.errors import UserError
from sparsevit.search.pool import USER_ERROR


def main() -> None:
    """Work on a study as the pickled arguments on standard input say; exits with 2 and a line for a UserError."""
    from sparsevit.search.run import work

    arguments = pickle.load(sys.stdin.buffer)  # from the parent process, which is the same program
    parent = arguments.pop("parent")
    try:
        # The parent has reached the database: if it is away now, it is waited for.
        work(**arguments, stopped=lambda: os.getppid() != parent, waiting=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
