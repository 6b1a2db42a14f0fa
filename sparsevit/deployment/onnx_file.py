"""A program as an ONNX file, and running it with onnxruntime."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from sparsevit.errors import MissingExtraError

PREFIX = "sparsevit."
"""Before the keys of the metadata properties."""

BATCH = "batch"


def require_onnx() -> None:
    """Raises MissingExtraError unless all packages are there that write and run ONNX files."""
    if not all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        raise MissingExtraError("writing ONNX", "deploy")


def write_onnx(program: ExportedProgram, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Write a program as ONNX, weights included, with its outputs called `outputs` and its input `image`."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch's own, of names that move inside it
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=list(outputs),
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort()},
        )
    assert made is not None
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        if value.shape is not None and not isinstance(value.shape[0], int):
            value.shape[0] = BATCH
    made.model.metadata_props.update({PREFIX + key: value for key, value in metadata.items()})
    made.save(path, external_data=False)


def _stable_sort() -> Callable[..., Any]:
    """torch's stable sort, which ranks windows, as ONNX has it; torch itself has no translation of it."""
    from onnxscript import opset18

    op: Any = opset18

    def stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        # TopK of all values: of equal ones it takes the one of the lower index first, as a stable sort does.
        count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]), axis=0)
        return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)

    return stable_sort


def onnx_runner(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """The model in a file, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(each) for each in session.run(None, {"image": images.numpy()})]
