"""Seeing beforehand that a folder can be written to, so that long work does not fail at its end."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sparsevit.errors import UserError


def check_folder(folder: Path, option: str = "--out") -> None:
    """See whether files can be written to `folder`, which need not be there yet; leaves nothing behind.

    Args:
        option: of the command line, by which another folder is chosen.

    Raises:
        UserError: if they cannot.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".sparsevit-"):
            pass
    except OSError as error:
        reason = "it is not a folder" if not existing.is_dir() else (error.strerror or "no permission").lower()
        raise UserError(f"cannot write to {existing}: {reason}; choose another folder with {option}") from None
