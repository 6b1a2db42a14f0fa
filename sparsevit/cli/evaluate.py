"""`sparsevit evaluate`: how accurate a detector is under given sparsities."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsevit.cli.training import CfgOptions, Config, Device


def evaluate(
    config: Config,
    checkpoint: Annotated[str, typer.Argument(help="Weights, or builtin:digits.")],
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            "--sparsity",
            "-s",
            help="As 0.3/0/0.1,0.2,0.2/0, 0.6 or dense; may be repeated. By default the config's own.",
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Judge on the first so many; all by default.")] = None,
    masks: Annotated[bool, typer.Option(help="Judge masks too, if the model has any.")] = True,
    precision: Annotated[
        str, typer.Option(help="On a GPU: float32, bfloat16 or float16; auto is bfloat16. A CPU takes float32.")
    ] = "auto",
    cfg_options: CfgOptions = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """COCO metrics of a detector on its config's test images, under one or several sparsities.

    Example: sparsevit evaluate builtin:digits/supernet.py builtin:digits -s dense -s 0.6 --images 50
    """
    import json
    from contextlib import nullcontext

    from rich.table import Table

    from sparsevit.cli.tables import print_whole
    from sparsevit.console import messages_on_stderr
    from sparsevit.openmmlab.config import load_config, options_of
    from sparsevit.openmmlab.train import judge_all

    settings = load_config(config, options_of(cfg_options))
    with messages_on_stderr() if as_json else nullcontext():
        figures = judge_all(
            settings, checkpoint, sparsity, device=device, images=images, precision=precision, masks=masks
        )
    if as_json:
        typer.echo(json.dumps([{"sparsity": str(one), **metrics} for one, metrics in figures], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sparsity", no_wrap=True)
    for key in figures[0][1]:
        table.add_column(key.replace("_", " "), justify="right", no_wrap=True)
    for one, metrics in figures:
        table.add_row("dense" if one.is_dense else str(one), *(f"{value:.4f}" for value in metrics.values()))
    print_whole(table)
