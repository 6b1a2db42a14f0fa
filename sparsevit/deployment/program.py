"""A backbone as a `torch.export` program: plain tensor operations that any PyTorch loads, without this package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from sparsevit.model.backbone import SparseSwin

METADATA = "sparsevit.json"
"""Where a program's file keeps its metadata."""

_TRACED_BATCH = 2  # of an open batch; one image would be taken for a fixed number


def traced(backbone: SparseSwin, size: tuple[int, int], batch: int | None) -> ExportedProgram:
    """The program of a backbone that has seen images of this size before; see `deploy`."""
    images = torch.zeros(batch or _TRACED_BATCH, backbone.patch_embed.projection.in_channels, *size)
    shapes = None if batch else {"image": {0: Dim("batch", min=1)}}
    return torch.export.export(backbone, (images,), dynamic_shapes=shapes)


def write_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program to a file that `torch.export.load` reads."""
    torch.export.save(program, path, extra_files={METADATA: json.dumps(dict(metadata), indent=1)})


def program_runner(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """The program in a file, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of names that move inside it
        module = torch.export.load(path).module()
    return lambda images: list(module(images))
