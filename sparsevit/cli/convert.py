"""`sparsevit convert`: weights in another format of keys, another kind of file, or for another window."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Checkpoint file, or builtin:digits.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .safetensors, .pth or .pt.")],
    to: Annotated[
        str | None, typer.Option(help="Keys of mmdet 2.x (and SparseViT), swin or timm. By default those of IN.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Interpolate the position bias tables to windows of this side.")
    ] = None,
    backbone: Annotated[bool, typer.Option("--backbone", help="Write a detector's backbone alone.")] = False,
    trust_checkpoint: Annotated[
        bool,
        typer.Option(
            "--trust-checkpoint", help="Read IN even if it holds more than weights. That executes what IN says to."
        ),
    ] = False,
) -> None:
    """Write the weights of a checkpoint, and nothing else of it, to another file.

    Reads Swin weights of mmdet 2.x, SparseViT, the original repository and timm, with or without a detector around
    them. Which they are is seen from their keys.

    Example: sparsevit convert swin_tiny_patch4_window7_224.pth swin_t.safetensors --to mmdet
    """
    from sparsevit.console import console
    from sparsevit.errors import UserError
    from sparsevit.model.weights import read_weights, sha256, weights_path, write_weights
    from sparsevit.model.weights.convert import backbone_of, converted, described
    from sparsevit.model.weights.files import check_suffix

    check_suffix(target)
    path = weights_path(source)
    if target.exists() and target.samefile(path):
        raise UserError(f"{target} is the file to read: give another name to write to")
    if trust_checkpoint:
        console.print(f"trusting {path}, sha256 {sha256(path)}", markup=False)
    weights = read_weights(path, trust=trust_checkpoint)
    console.print(f"{path}: {described(weights)}", markup=False)
    try:
        made = converted(backbone_of(weights) if backbone else weights, to, window)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    write_weights(made, target)
    console.print(f"{target}: {described(made)}, sha256 {sha256(target)}", markup=False)
