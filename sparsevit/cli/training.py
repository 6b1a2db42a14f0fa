"""What the two training commands share: the options of mmdet's tools, and the call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsevit.errors import UserError

Config = Annotated[str, typer.Argument(help="mmdet config file (it is executed), or builtin:… .")]
WorkDir = Annotated[Path | None, typer.Option(help="Folder for checkpoints and log; work_dirs/CONFIG by default.")]
CfgOptions = Annotated[
    list[str] | None,
    typer.Option("--cfg-options", metavar="KEY=VALUE", help="Overrule a key of the config; may be given several times."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of initialisation, data order and sampling.")]
Device = Annotated[str, typer.Option(help="cpu, cuda:N, or auto for a GPU if there is one.")]


def options_of(items: Sequence[str] | None) -> Mapping[str, Any]:
    """`key.sub=value` texts as a mapping; values are JSON where they can be read so, else text."""
    options: dict[str, Any] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"cannot read --cfg-options {item!r}: write it as key.sub=value, as runner.max_epochs=3")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def default_work_dir(config: str) -> Path:
    """`work_dirs/<config>`, as mmdet's tools have it."""
    return Path("work_dirs") / Path(config.rpartition(":")[2]).stem


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """One line: the mAPs of boxes and masks."""
    from sparsevit.console import console

    shown = [f"{key.removesuffix('_mAP')} mAP {value:.4f}" for key, value in metrics.items() if key.endswith("_mAP")]
    console.print(f"{title}: {', '.join(shown)}", markup=False)
