"""Writes a backbone under one sparsity to a file, and vouches for that file: it is run beside the backbone first."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsevit.deployment.onnx_file import onnx_runner, require_onnx, write_onnx
from sparsevit.deployment.program import program_runner, traced, write_program
from sparsevit.deployment.verification import Difference, compare
from sparsevit.errors import UserError, first_line
from sparsevit.model.backbone import SparseSwin

ONNX, PROGRAM = ".onnx", ".pt2"
CHECKED_BATCHES = (1, 3)
"""What a file for any batch is checked with; it is traced with another one."""

Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Deployed:
    """A file that was written.

    Attributes:
        maps: shape of each feature map of a single image, `(C, H, W)`.
        difference: how far its output was from the backbone's.
    """

    path: Path
    maps: tuple[tuple[int, ...], ...]
    difference: Difference


def deploy(
    backbone: SparseSwin, path: Path, size: tuple[int, int], batch: int | None, metadata: Mapping[str, str]
) -> Deployed:
    """Write `backbone` under its active sparsity to `path`, whole or not at all.

    The file takes normalised float32 images `(B, colours, *size)` and gives the feature maps `(B, C, H, W)` of the
    stages in `out_indices`. How many windows each layer keeps is fixed in it; which ones it finds out for each image.

    Args:
        path: ends in `.pt2` for a `torch.export` program, in `.onnx` for ONNX.
        size: height and width of the images in pixels.
        batch: images of a call; None leaves it open.
        metadata: kept in the file, as `sparsevit.json` beside a program, as metadata properties of ONNX.

    Raises:
        MissingExtraError: if ONNX's packages are not installed.
        UserError: if the suffix is another one, the file cannot be written, or it does not compute what the backbone
            does.
    """
    check_path(path)
    backbone = copy.deepcopy(backbone).cpu().float().eval().requires_grad_(False)
    # This pass also makes the tables of windows: made while tracing, they would be none that a pass can use.
    maps = backbone(torch.zeros(1, backbone.patch_embed.projection.in_channels, *size))
    program = traced(backbone, size, batch)
    names = [f"stage{index + 1}" for index in backbone.out_indices]
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        run: Run
        if path.suffix == ONNX:
            write_onnx(program, temporary, names, metadata)
            run = onnx_runner(temporary)
        else:
            write_program(program, temporary, metadata)
            run = program_runner(temporary)
        difference = compare(run, backbone, size, CHECKED_BATCHES if batch is None else (batch,), path)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {first_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return Deployed(path, tuple(tuple(each.shape[1:]) for each in maps), difference)


def check_path(path: Path) -> None:
    """See whether a program can be written to `path`, before anything is built for it.

    Raises:
        MissingExtraError: if ONNX's packages are not installed.
        UserError: if not.
    """
    if path.suffix not in (ONNX, PROGRAM):
        raise UserError(f"cannot tell what to write from the name {path}: end it in {ONNX} or {PROGRAM}")
    if path.suffix == ONNX:
        require_onnx()
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".sparsevit-"):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {(error.strerror or 'no permission').lower()}") from None
