"""`sparsevit data`: the data sets that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write a built-in data set.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Write a built-in data set.

    Example: sparsevit data digits --images 500 --size 448
    """


@app.command()
def digits(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("data/digits"),
    split: Annotated[str, typer.Option(help="val or train; they share no digit and no part of a photograph.")] = "val",
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 500,
    size: Annotated[str, typer.Option(help="Pixels: one side, or HEIGHTxWIDTH.")] = "448",
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same images.")] = 0,
) -> None:
    """Write handwritten digits on photographs as a COCO data set, with boxes and masks.

    Example: sparsevit data digits --out data/digits --images 500 --size 448
    """
    from sparsevit.console import console
    from sparsevit.data.coco import write_digits
    from sparsevit.latency.target import parse_size

    path = write_digits(out, split=split, images=images, size=parse_size(size), seed=seed)
    console.print(f"images and annotations: {path}", markup=False)
