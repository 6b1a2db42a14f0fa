"""Pages of the server as TOML: figures, and panels that answer to the user. A file more is a page more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from sparsevit.assets import asset
from sparsevit.dashboard.page import FigureName, Page, Section
from sparsevit.errors import UserError

PANELS = ("facts", "pick", "windows", "compare")
"""What a page may hold besides figures: the state of the search, the choice of a configuration by its latency, the
windows it keeps on an image, several studies on one chart."""

_FIRST = "1_overview.toml"
_SLUG = re.compile(r"(?:\d+_)?([a-z0-9][a-z0-9-]*)")


def _known(name: str) -> str:
    if name not in PANELS:
        raise ValueError(f"unknown panel {name!r}; allowed are {', '.join(PANELS)}")
    return name


class LiveSection(Section):
    """Panels, then figures, under one heading."""

    figures: tuple[FigureName, ...] = ()
    panels: tuple[Annotated[str, AfterValidator(_known)], ...] = ()


class LivePage(Page):
    """A page of the server."""

    sections: tuple[LiveSection, ...] = Field(alias="section", min_length=1)


def load_pages(folder: Path | None = None) -> dict[str, LivePage]:
    """Pages by the last part of their address, in the order of their files' names: `1_overview.toml` is `overview`.

    Args:
        folder: where their files lie; those that come with the project if not given.

    Raises:
        UserError: if there is none, or one is wrong.
    """
    folder = folder or asset("dashboards", f"pages/{_FIRST}").parent
    files = sorted(folder.glob("*.toml"), key=lambda file: (_number(file), file.name))
    if not files:
        raise UserError(f"{folder} holds no page: copy the files of dashboards/pages there, and change them")
    pages: dict[str, LivePage] = {}
    for file in files:
        match = _SLUG.fullmatch(file.stem)
        if match is None or match[1] in pages:
            raise UserError(f"{file}: name a page like 8_mine.toml, in small letters, and no two alike")
        pages[match[1]] = LivePage.load(file)
    return pages


def _number(file: Path) -> int:
    digits = re.match(r"\d+", file.name)
    return int(digits[0]) if digits else 10**9
