"""What the two training commands share: the options of mmdet's tools, and the call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(help="mmdet config file (it is executed), or builtin:… .")]
WorkDir = Annotated[Path | None, typer.Option(help="Folder for checkpoints and log; work_dirs/CONFIG by default.")]
CfgOptions = Annotated[
    list[str] | None,
    typer.Option("--cfg-options", metavar="KEY=VALUE", help="Overrule a key of the config; may be repeated."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of initialisation, data order and sampling.")]
Device = Annotated[str, typer.Option(help="cpu, cuda:N, or auto for a GPU if there is one.")]


def default_work_dir(config: str) -> Path:
    """`work_dirs/<config>`, as mmdet's tools have it."""
    return Path("work_dirs") / Path(config.rpartition(":")[2]).stem


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """One line: the mAPs of boxes and masks."""
    from sparsevit.console import console

    shown = [f"{key.removesuffix('_mAP')} mAP {value:.4f}" for key, value in metrics.items() if key.endswith("_mAP")]
    console.print(f"{title}: {', '.join(shown)}", markup=False)
