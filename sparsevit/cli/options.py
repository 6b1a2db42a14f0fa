"""Arguments that the commands about a study share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results; runs/NAME by default.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrule a key of the study file; may be given several times."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that evaluate at once, a GPU each; search.workers by default.")
]
Grace = Annotated[
    float | None,
    typer.Option(min=10, metavar="SECONDS", help="A worker that gives no sign for so long counts as dead; 300."),
]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Run the workers on a Ray cluster: auto, or HOST:PORT of its head."),
]
