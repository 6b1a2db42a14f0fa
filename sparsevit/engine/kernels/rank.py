"""Which windows are most active: token magnitudes, window scores, and ranks by counting instead of sorting.

B images, T tokens of a map, W windows, N tokens in a window, C channels, S slots. Both partitions of a map, plain and
shifted, are ranked at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.sums import magnitudes_of


@triton.jit(do_not_specialize=["rows"])
def _magnitude(
    x, out, rows, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, S: tl.constexpr, DEPENDENT: tl.constexpr
):
    begin(DEPENDENT)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    mask = (m < rows)[:, None] & (c < C)[None, :]
    values = tl.load(x + m.to(tl.int64)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(tl.abs(values), 1)
    for slot in tl.static_range(S):
        tl.store(out + slot * rows + m, total if slot == 0 else tl.zeros((BM,), tl.float32), mask=m < rows)


def magnitude(x: Tensor, out: Tensor) -> None:
    """Sums of absolute activations of rows `x`, shape `(R, C)`, into `out`, shape `(S, R)`, float32; see `sums.py`.

    For a stage whose first block keeps all windows: to others these are left behind by whoever writes the rows.
    """
    rows, channels = x.shape
    block = triton.next_power_of_2(channels)
    per_program = max(1, 4096 // block)
    _magnitude[(triton.cdiv(rows, per_program),)](
        x,
        out,
        rows,
        C=channels,
        BM=per_program,
        BC=block,
        S=len(out),
        **launch_options(x),
        num_warps=4,
    )


def magnitude_reference(x: Tensor, out: Tensor) -> None:
    """What `magnitude` computes, in plain PyTorch."""
    out.copy_(magnitudes_of(x.to(torch.promote_types(x.dtype, torch.float32)), len(out)))


@triton.jit
def _of_tokens(magnitudes, image, images, place, tokens, S: tl.constexpr):
    """Magnitudes of an image's tokens, sums over slots; 0 where a place is padding."""
    values = tl.load(magnitudes + image * tokens + place, mask=place >= 0, other=0.0)
    for slot in tl.static_range(1, S):
        values += tl.load(magnitudes + (slot * images + image) * tokens + place, mask=place >= 0, other=0.0)
    return values


@triton.jit(do_not_specialize=["tokens", "windows"])
def _score(
    magnitudes,
    places,
    out,
    tokens,
    windows,
    S: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    BW: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    image = tl.program_id(1)
    partition = tl.program_id(2)
    w = tl.program_id(0) * BW + tl.arange(0, BW)
    n = tl.arange(0, P)
    mask = (w < windows)[:, None] & (n < N)[None, :]
    place = tl.load(places + (partition * windows + w)[:, None] * N + n[None, :], mask=mask, other=-1)
    begin(DEPENDENT)
    values = _of_tokens(magnitudes, image, tl.num_programs(1), place, tokens, S)
    at = (partition * tl.num_programs(1) + image) * windows + w
    tl.store(out + at, tl.sum(values * values, 1), mask=w < windows)


def score(magnitudes: Tensor, places: Tensor, out: Tensor) -> None:
    """Sum of the squares of each window's magnitudes: their L2 norm's square, which ranks the same.

    Args:
        magnitudes: sums of absolute activations, shape `(S, B * T)`, float32.
        places: token of each window position in both partitions, shape `(2, W, N)`, int32; -1 where it is padding.
        out: shape `(2, B, W)`, float32.
    """
    partitions, windows, tokens = places.shape
    images = out.shape[1]
    _score[(triton.cdiv(windows, 8), images, partitions)](
        magnitudes,
        places,
        out,
        magnitudes.shape[1] // images,
        windows,
        S=len(magnitudes),
        N=tokens,
        P=triton.next_power_of_2(tokens),
        BW=8,
        **launch_options(magnitudes),
        num_warps=4,
    )


def score_reference(magnitudes: Tensor, places: Tensor, out: Tensor) -> None:
    """What `score` computes, in plain PyTorch."""
    of_tokens = magnitudes.sum(0).view(out.shape[1], -1)
    padded = torch.cat([of_tokens, of_tokens.new_zeros(len(of_tokens), 1)], dim=1)
    out.copy_(padded[:, places.long()].square().sum(-1).transpose(0, 1))


@triton.jit(do_not_specialize=["tokens", "windows"])
def _rank(
    scores,
    places,
    ranked,
    table,
    tokens,
    windows,
    N: tl.constexpr,
    P: tl.constexpr,
    BW: tl.constexpr,
    BO: tl.constexpr,
    AT_ONCE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    image = tl.program_id(1)
    partition = tl.program_id(2)
    w = tl.program_id(0) * BW + tl.arange(0, BW)
    mine = (partition * tl.num_programs(1) + image) * windows
    n = tl.arange(0, P)
    mask = (w < windows)[:, None] & (n < N)[None, :]
    place = tl.load(places + (partition * windows + w)[:, None] * N + n[None, :], mask=mask, other=-1)
    begin(DEPENDENT)
    # Scores are not negative, so their bits order as they do; NaN has a place too, and ranks stay a permutation.
    own = tl.load(scores + mine + w, mask=w < windows, other=0.0).to(tl.int32, bitcast=True)
    beaten = tl.zeros((BW, BO), tl.int32)  # added up over all at the end: each sum over threads waits for all of them
    for start in range(0, windows, BO * AT_ONCE):
        for number in tl.static_range(AT_ONCE):  # so that they are all asked for before the first is waited for
            other = start + number * BO + tl.arange(0, BO)
            theirs = tl.load(scores + mine + other, mask=other < windows, other=0.0).to(tl.int32, bitcast=True)
            beats = theirs[None, :] > own[:, None]
            beats |= (theirs[None, :] == own[:, None]) & (other[None, :] < w[:, None])
            beaten += (beats & (other < windows)[None, :]).to(tl.int32)
    better = tl.sum(beaten, 1)
    tl.store(ranked + mine + better, w, mask=w < windows)
    row = tl.where(place >= 0, image * tokens + place, -1)
    tl.store(table + (mine + better)[:, None] * N + n[None, :], row, mask=mask)


def rank(scores: Tensor, places: Tensor, tokens: int, ranked: Tensor, table: Tensor) -> None:
    """Order windows from most to least active; of equals the one with the lower number comes first.

    Args:
        scores: shape `(2, B, W)`, not negative.
        places: as for `score`.
        tokens: of a map, T.
        ranked: windows in order, shape `(2, B, W)`, int32.
        table: rows of the token buffer of their positions, shape `(2, B, W * N)`, int32; -1 where it is padding.
    """
    partitions, images, windows = scores.shape
    per_window = places.shape[2]
    _rank[(triton.cdiv(windows, 8), images, partitions)](
        scores,
        places,
        ranked,
        table,
        tokens,
        windows,
        N=per_window,
        P=triton.next_power_of_2(per_window),
        BW=8,
        BO=256,
        AT_ONCE=min(4, triton.cdiv(windows, 256)),
        **launch_options(scores),
        num_warps=4,
    )


def rank_reference(scores: Tensor, places: Tensor, tokens: int, ranked: Tensor, table: Tensor) -> None:
    """What `rank` computes, in plain PyTorch."""
    ranked.copy_(scores.argsort(dim=-1, descending=True, stable=True))
    image = torch.arange(scores.shape[1], device=scores.device).view(-1, 1, 1)
    for partition, order in enumerate(ranked.long()):
        place = places[partition].long()[order]
        table[partition] = torch.where(place >= 0, image * tokens + place, -1).flatten(1)
