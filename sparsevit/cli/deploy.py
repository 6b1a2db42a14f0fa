"""`sparsevit deploy`: a found subnet's backbone as a file that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsevit.cli.training import CfgOptions

ANY = "any"


def deploy(
    config: Annotated[str, typer.Argument(help="Config of the detector (it is executed), or builtin:… .")],
    checkpoint: Annotated[str, typer.Argument(help="Weights, of the detector or its backbone, or builtin:digits.")],
    out: Annotated[Path, typer.Option(help="File to write: .pt2, a torch.export program; or .onnx.")],
    size: Annotated[str, typer.Option(help="Image size in pixels: one side, or HEIGHTxWIDTH.")],
    sparsity: Annotated[
        str | None,
        typer.Option("--sparsity", "-s", help="As 0.3/0/0.1,0.2,0.2/0, 0.6 or dense. By default the config's own."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images per call; any leaves it open.")] = ANY,
    cfg_options: CfgOptions = None,
) -> None:
    """Write a detector's backbone under one sparsity as a program that needs PyTorch alone, or as ONNX.

    It takes normalised images and gives the feature maps that neck and heads go on from. The numbers of kept windows
    are fixed in it. Before it is kept it is run beside the backbone, on the CPU, and the largest difference is printed.
    Where it comes from stands in it, and how its images are normalised.

    Example: sparsevit deploy builtin:digits/supernet.py builtin:digits -s 0.6 --size 448 --out digits.onnx
    """
    from sparsevit import __version__
    from sparsevit.console import console
    from sparsevit.deployment import deploy as write
    from sparsevit.deployment.deploy import check_path
    from sparsevit.errors import MissingExtraError
    from sparsevit.latency.target import parse_size
    from sparsevit.model.weights import sha256, weights_path
    from sparsevit.sparsity import Sparsity

    pixels, images = _checked_size(parse_size(size)), _images_per_call(batch)
    check_path(out)
    source = weights_path(checkpoint)
    try:
        from sparsevit.openmmlab.config import build_backbone, load_config, options_of
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"sparsevit deploy (module {error.name})", "openmmlab") from error
    settings = load_config(config, options_of(cfg_options))
    backbone = build_backbone(settings, checkpoint)
    if sparsity is not None:
        backbone.sparsity = Sparsity.of(sparsity, backbone.depths)
    metadata = {
        "version": __version__,
        "scope": "backbone",
        "sparsity": str(backbone.sparsity),
        "size": f"{pixels[0]}x{pixels[1]}",
        "batch": batch,
        "config": config,
        "checkpoint": checkpoint,
        "checkpoint_sha256": sha256(source),
        **_normalisation(settings),
    }
    made = write(backbone, out, pixels, images, metadata)
    maps = ", ".join("x".join(map(str, shape)) for shape in made.maps)
    console.print(
        f"{out}: backbone at {'dense' if backbone.sparsity.is_dense else backbone.sparsity}, {batch} images of "
        f"3x{metadata['size']} to maps {maps}; sha256 {sha256(out)}",
        markup=False,
    )
    console.print(
        f"largest difference from the backbone, on the CPU: {made.difference.largest:.2g}, of values up to "
        f"{made.difference.value:.3g}",
        markup=False,
    )


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    from sparsevit.errors import UserError
    from sparsevit.latency.target import MIN_SIDE

    if min(size) < MIN_SIDE:
        raise UserError(f"an image of {size[0]}x{size[1]} pixels is too small: each side must be {MIN_SIDE} or more")
    return size


def _images_per_call(text: str) -> int | None:
    from sparsevit.errors import UserError

    if text == ANY:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch {text!r} is no number of images: write 1 or more, or {ANY}")
    return int(text)


def _normalisation(config: Any) -> dict[str, str]:
    """How the config's test images are normalised, if it says so."""
    data = config.get("data") or {}
    split = data.get("test") or data.get("val") or {}
    steps = list(split.get("pipeline") or ()) if isinstance(split, dict) else []
    for step in steps:
        steps += step.get("transforms") or ()
        if step.get("type") == "Normalize":
            return {
                "image_mean": " ".join(map(str, step["mean"])),
                "image_std": " ".join(map(str, step["std"])),
                "image_colours": "RGB" if step.get("to_rgb", True) else "BGR",
            }
    return {}
