"""`feed_forward` of few compact rows, whose hidden channels three programs share: `shared_feed_forward.cu`.

Few rows are few blocks. One program to a block would leave most multiprocessors idle, and two kernels, one for each
layer, write hidden values and read them again. So each program takes a third of a block's hidden channels through both
layers, hands on what that adds to the others' channels, and finishes a third of the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from sparsevit.engine.kernels.chained_feed_forward import chained_feed_forward_reference
from sparsevit.engine.kernels.cuda_source import TYPES, Source, launch, runs_on, tensor_map
from sparsevit.engine.kernels.dependent import launch_options
from sparsevit.engine.kernels.device import multiprocessors
from sparsevit.engine.kernels.folded import Weights
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import SLOT
from sparsevit.engine.tuning import MULTIPROCESSORS, SHARED_ROWS, SHARES

CHANNELS, HIDDEN = 384, 1536
THREADS = 384
SHARED = 220 * 1024
"""Bytes of shared memory, of which a multiprocessor has 227 KiB."""

MOST = MULTIPROCESSORS // SHARES
"""Blocks of rows for which an exchange has room; no more are faster."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """Where the programs of a block of rows hand on partial sums. Launches that share one run one after the other.

    inbox: what each program is handed on by both others of its block, 64 rows of its channels from each, two values to
        an int32. It is filled with -1, which no pair is that is handed on: whoever finds -1 looks again, and values
        need no flag beside them. There are two by turns: in a launch others may write to one before
        this program empties it again, so it empties the one that it read a launch ago.
    epochs: of each program of each block, how many launches it had, int32; the last bit is whose turn it is. Launches
        have as many blocks as they have rows for, so each block counts its own.
    """

    inbox: Tensor
    epochs: Tensor


def make_exchange(device: torch.device) -> Exchange:
    """One in which nothing has been handed on."""
    turns, others = 2, SHARES - 1
    values = turns * MOST * SHARES * others * SHARED_ROWS * CHANNELS // SHARES
    return Exchange(
        torch.full((values // 2,), -1, dtype=torch.int32, device=device),
        torch.zeros(MOST * SHARES, dtype=torch.int32, device=device),
    )


def source(dtype: torch.dtype) -> Source:
    """The kernel for rows and weights of this type."""
    definitions = {
        "C": str(CHANNELS),
        "HIDDEN": str(HIDDEN),
        "SHARES": str(SHARES),
        "THREADS": str(THREADS),
        "SHARED": str(SHARED),
        "MOST": str(MOST),
        **TYPES[dtype],
    }
    return Source("shared_feed_forward", tuple(definitions.items()), THREADS, SHARED)


def shared_feed_forward(
    between: Tensor,
    first: Weights,
    second: Weights,
    out: Tensor,
    exchange: Exchange,
    *,
    target: Rows,
    between_sums: Tensor,
    sums: Tensor,
) -> None:
    """Norm, feed-forward network and residual of compact rows, M of them, for which `shares` and its device allow it.

    Args:
        between: shape `(M, C)`; between_sums: of its rows, shape `(M, S, 2)`, float32, see `sums.py`.
        first: norm and first layer, shape `(C, F)`; second: shape `(F, C)`.
        out: token buffer, shape `(R, C)`.
        exchange: that of no other launch that may run at the same time.
        target: rows of `out` that are written; their table is older than the kernel launched before.
        sums: of the rows of `out`, shape `(R, S, 2)`, float32, written for the same.
    """
    rows = target.total
    blocks = triton.cdiv(rows, SHARED_ROWS)
    assert blocks <= MOST
    assert first.eps is not None
    arguments = (
        tensor_map(between, SHARED_ROWS, CHANNELS // SLOT // 2),  # half of the channels
        tensor_map(first.weight, 64, 2),
        tensor_map(second.weight, 64, 2),
        first.bias,
        first.column_sums,
        second.bias,
        between_sums,
        target.table,
        out,
        sums,
        exchange.inbox,
        exchange.epochs,
        rows,
        target.per_image,
        target.table.shape[1],
        first.eps,
    )
    dependent = launch_options(between)["DEPENDENT"]
    launch(source(between.dtype), SHARES * blocks, arguments, between.device, dependent=dependent)


def shares(x: Tensor, first: Weights) -> bool:
    """Whether the kernel is made for the device and type of `x`, and for a network with this first layer."""
    return (
        first.weight.shape == (CHANNELS, HIDDEN)
        and first.eps is not None
        and x.dtype in TYPES
        and runs_on(x.device)
        and multiprocessors(x.device) >= MULTIPROCESSORS
    )


def shared_feed_forward_reference(
    between: Tensor,
    first: Weights,
    second: Weights,
    out: Tensor,
    exchange: Exchange,
    *,
    target: Rows,
    between_sums: Tensor,
    sums: Tensor,
) -> None:
    """What `shared_feed_forward` computes, in plain PyTorch and the precision of `between`."""
    chained_feed_forward_reference(between, first, second, out, target=target, between_sums=between_sums, sums=sums)
