"""Pages as TOML: which figures, in which order, under which headings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sparsevit.dashboard.figures import FIGURES
from sparsevit.errors import UserError


def _known(name: str) -> str:
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; allowed are {', '.join(FIGURES)}")
    return name


FigureName = Annotated[str, AfterValidator(_known)]


class Section(BaseModel):
    """Figures under one heading."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heading: str
    figures: tuple[FigureName, ...]


class Page(BaseModel):
    """A page: its title, and its sections from top to bottom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    sections: tuple[Section, ...] = Field(alias="section", min_length=1)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a page from a TOML file.

        Raises:
            UserError: if the file is missing or no TOML, or naming the key that is wrong and what it may be.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"cannot read the page {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid TOML: {error}") from None
        except ValidationError as error:
            raise UserError(f"{path}: {_first(error.errors()[0])}") from None


def _first(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"
