"""`feed_forward` of compact rows whose hidden values stay in registers between its layers: `chained_feed_forward.cu`.

For more channels than `feed_forward.py` is fast with, where rows fill half of one wave to all of it: two kernels, one
for each layer, would write hidden values and read them again.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.cuda_source import TYPES, Source, launch, runs_on, tensor_map
from sparsevit.engine.kernels.dependent import launch_options
from sparsevit.engine.kernels.folded import Weights, normed_product
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import SLOT, sums_of
from sparsevit.engine.tuning import CHAINED_ROWS

CHANNELS, HIDDEN = 192, 768
THREADS = 384
SHARED = 200 * 1024
"""Bytes of shared memory, of which a multiprocessor has 227 KiB."""


def source(dtype: torch.dtype) -> Source:
    """The kernel for rows and weights of this type."""
    definitions = {
        "C": str(CHANNELS),
        "HIDDEN": str(HIDDEN),
        "ROWS": str(CHAINED_ROWS),
        "THREADS": str(THREADS),
        "SHARED": str(SHARED),
        **TYPES[dtype],
    }
    return Source("chained_feed_forward", tuple(definitions.items()), THREADS, SHARED)


def chained_feed_forward(
    between: Tensor,
    first: Weights,
    second: Weights,
    out: Tensor,
    *,
    target: Rows,
    between_sums: Tensor,
    sums: Tensor,
) -> None:
    """Norm, feed-forward network and residual of compact rows, M of them, where `chains` allows it.

    Args:
        between: shape `(M, C)`; between_sums: of its rows, shape `(M, S, 2)`, float32, see `sums.py`.
        first: norm and first layer, shape `(C, F)`; second: shape `(F, C)`.
        out: token buffer, shape `(R, C)`.
        target: rows of `out` that are written; their table is older than the kernel launched before.
        sums: of the rows of `out`, shape `(R, S, 2)`, float32, written for the same.
    """
    rows = target.total
    assert first.eps is not None
    arguments = (
        tensor_map(between, CHAINED_ROWS, 1),
        tensor_map(first.weight, 64, 2),
        tensor_map(second.weight, 64, CHANNELS // SLOT),
        first.bias,
        first.column_sums,
        second.bias,
        between_sums,
        target.table,
        out,
        sums,
        rows,
        target.per_image,
        target.table.shape[1],
        first.eps,
    )
    dependent = launch_options(between)["DEPENDENT"]
    launch(source(between.dtype), triton.cdiv(rows, CHAINED_ROWS), arguments, between.device, dependent=dependent)


def chains(x: Tensor, first: Weights) -> bool:
    """Whether the kernel is made for the device and type of `x`, and for a network with this first layer."""
    return first.weight.shape == (CHANNELS, HIDDEN) and first.eps is not None and x.dtype in TYPES and runs_on(x.device)


def chained_feed_forward_reference(
    between: Tensor,
    first: Weights,
    second: Weights,
    out: Tensor,
    *,
    target: Rows,
    between_sums: Tensor,
    sums: Tensor,
) -> None:
    """What `chained_feed_forward` computes, in plain PyTorch and the precision of `between`."""
    after = between + normed_product(F.gelu(normed_product(between, first)), second)
    target.scatter(out, after)
    target.scatter(sums, sums_of(after))
