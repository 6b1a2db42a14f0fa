"""Checkpoints of a work folder: written whole or not at all, and told from half-written ones when a run is resumed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsevit.console import console

_TEMPORARY = "checkpoint.tmp"


def checkpoints(folder: Path) -> list[Path]:
    """Files `epoch_<n>.pth` in a work folder, oldest first; one that was copied there may be half-written."""
    numbered = [path for path in folder.glob("epoch_*.pth") if path.stem.removeprefix("epoch_").isdecimal()]
    return sorted(numbered, key=lambda path: int(path.stem.removeprefix("epoch_")))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint to resume from. Each half-written file that is passed over is said in a line."""
    if (folder / _TEMPORARY).exists():
        console.print(f"note: {folder / _TEMPORARY} was not finished and is not used", markup=False)
    for path in reversed(checkpoints(folder)):
        if is_complete(path):
            return path
        console.print(f"note: {path} is damaged or half-written and is not used", markup=False)
    return None


def is_complete(path: Path) -> bool:
    """Whether all that `torch.save` wrote is there and unharmed; reads the file once."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        return False


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint that is there whole, or not at all, also when the machine stops."""
    temporary = path.with_name(_TEMPORARY)
    try:
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:  # a full disk, Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
