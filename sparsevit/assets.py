"""Where the settings that come with the project lie: beside a checkout of it, or inside the installed package."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

from sparsevit.errors import UserError

Kind = Literal["configs", "studies", "dashboards"]

_PACKAGE = Path(__file__).resolve().parent


def asset(kind: Kind, name: str, *, package: Path = _PACKAGE) -> Path:
    """The file `name` (a relative path with forward slashes) among the `kind` that come with the project.

    A checkout's own top-level folder comes first, so that edits there count; a wheel carries a copy.

    Raises:
        UserError: if there is no such file; it names those there are.
    """
    relative = PurePosixPath(name)
    inside = not relative.is_absolute() and ".." not in relative.parts
    folders = _folders(kind, package)
    for folder in folders if inside else ():
        path = folder / relative
        if path.is_file():
            return path
    known = sorted({path.relative_to(folder).as_posix() for folder in folders for path in _files(folder)})
    raise UserError(f"no {name!r} among the {kind} that come with sparsevit; there are: {', '.join(known) or 'none'}")


def _folders(kind: str, package: Path) -> list[Path]:
    """The checkout's folder, only where `package` lies in a checkout, and the package's own."""
    checkout = package.parent
    beside = [checkout / kind] if (checkout / "pyproject.toml").is_file() else []
    return [*beside, package / "_assets" / kind]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
