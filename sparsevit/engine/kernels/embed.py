"""Patch embedding: cut an image into patches, project them and normalise, straight into token rows.

B images, T tokens, H W height and width in tokens, C channels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.sums import slots, store_sums, sums_of


@triton.jit(do_not_specialize=["rows", "height", "width", "token_rows", "token_columns"])
def _embed(
    image,
    weight,
    bias,
    scale,
    shift,
    position,
    out,
    sums,
    magnitudes,
    rows,
    height,
    width,
    token_rows,
    token_columns,
    C: tl.constexpr,
    BC: tl.constexpr,
    COLOURS: tl.constexpr,
    PATCH: tl.constexpr,
    BP: tl.constexpr,
    BL: tl.constexpr,
    WHOLE: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    POSITION: tl.constexpr,
    MAGNITUDES: tl.constexpr,
    BM: tl.constexpr,
    SLOTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    LINES: tl.constexpr = COLOURS * PATCH  # of a patch, each of PATCH pixels; blocks have BL of BP
    BK: tl.constexpr = BL * BP
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    k = tl.arange(0, BK)
    read = weight + (k // BP * PATCH + k % BP)[:, None] * C + c[None, :]
    kernel = tl.load(read, mask=((k // BP < LINES) & (k % BP < PATCH))[:, None] & (c < C)[None, :], other=0.0)
    # Neighbouring threads take one line of neighbouring patches: these pixels lie in a row, lines of a patch do not.
    pitch = token_columns * PATCH if WHOLE else width
    patch_row = m // token_columns  # of all images
    number = patch_row // token_rows
    y = (patch_row - number * token_rows) * PATCH
    x = (m - patch_row * token_columns) * PATCH
    corner = number.to(tl.int64) * (COLOURS * height * pitch) + y * pitch + x
    line = tl.arange(0, BL)
    pixel = tl.arange(0, BP)[None, None, :]
    across = (line // PATCH * height + line % PATCH) * pitch
    inside = (m < rows)[:, None] & (line < LINES)[None, :] & (y[:, None] + (line % PATCH)[None, :] < height)
    inside = inside[:, :, None]
    if BP > PATCH:
        inside &= pixel < PATCH
    if not WHOLE:
        inside &= x[:, None, None] + pixel < width
    begin(DEPENDENT)
    pixels = tl.load(image + (corner[:, None] + across[None, :])[:, :, None] + pixel, mask=inside, other=0.0)
    patch = tl.reshape(pixels.to(kernel.dtype), (BM, BK))
    acc = tl.dot(patch, kernel) + tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    if NORM:
        acc *= tl.rsqrt(tl.sum(acc * acc, 1) / C + EPS)[:, None]
        acc = acc * tl.load(scale + c, mask=c < C, other=0.0)[None, :]
        acc += tl.load(shift + c, mask=c < C, other=0.0)[None, :]
    mask = (m < rows)[:, None] & (c < C)[None, :]
    if POSITION:
        token = m - number * (token_rows * token_columns)
        acc += tl.load(position + token[:, None] * C + c[None, :], mask=mask, other=0.0)
    store_sums(sums, m, m < rows, tl.sum(acc, 1), tl.sum(acc * acc, 1), C, SLOTS)
    tokens = acc.to(out.dtype.element_ty)
    tl.store(out + m.to(tl.int64)[:, None] * C + c[None, :], tokens, mask=mask)
    if MAGNITUDES:
        tl.store(magnitudes + m, tl.sum(tl.abs(tokens.to(tl.float32)), 1), mask=m < rows)


def embed(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor, float] | None,
    position: Tensor | None,
    patch: int,
    out: Tensor,
    sums: Tensor,
    magnitudes: Tensor | None,
    *,
    rows: int = 64,
    warps: int = 4,
) -> None:
    """Tokens of images.

    Args:
        images: shape `(B, colours, height, width)` in pixels, contiguous, of any floating type.
        weight: shape `(colours * patch * patch, C)`.
        bias: shape `(C,)`, float32.
        norm: scale and shift in float32, and eps; the means of `weight` and `bias` over C must then be 0, which makes
            those of tokens 0.
        position: what is added to each token, shape `(T, C)`, float32.
        out: shape `(B * T, C)`; patches at the bottom and right are filled up with 0.
        sums, magnitudes: of each token, shapes `(B * T, S, 2)` and `(1, B * T)`, float32; see `sums.py`. Magnitudes
            are wanted where windows are ranked next.
    """
    _, colours, height, width = images.shape
    channels = weight.shape[1]
    power = triton.next_power_of_2(patch)
    token_rows, token_columns = triton.cdiv(height, patch), triton.cdiv(width, patch)
    scale, shift, eps = norm or (bias, bias, 0.0)
    _embed[(triton.cdiv(out.shape[0], rows),)](
        images,
        weight,
        bias,
        scale,
        shift,
        bias if position is None else position,
        out,
        sums,
        sums if magnitudes is None else magnitudes,
        out.shape[0],
        height,
        width,
        token_rows,
        token_columns,
        C=channels,
        BC=max(16, triton.next_power_of_2(channels)),
        COLOURS=colours,
        PATCH=patch,
        BP=power,
        BL=max(triton.next_power_of_2(colours * patch), triton.cdiv(16, power)),
        WHOLE=width % patch == 0,
        NORM=norm is not None,
        EPS=eps,
        POSITION=position is not None,
        MAGNITUDES=magnitudes is not None,
        BM=rows,
        SLOTS=triton.next_power_of_2(slots(channels)),
        **launch_options(images),
        num_warps=warps,
    )


def embed_reference(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor, float] | None,
    position: Tensor | None,
    patch: int,
    out: Tensor,
    sums: Tensor,
    magnitudes: Tensor | None,
    *,
    rows: int = 64,
    warps: int = 4,
) -> None:
    """What `embed` computes, in plain PyTorch and the precision of `out`."""
    height, width = images.shape[-2:]
    images = F.pad(images.to(out.dtype), (0, -width % patch, 0, -height % patch))
    kernel = weight.to(out.dtype).T.reshape(weight.shape[1], images.shape[1], patch, patch)
    x = F.conv2d(images, kernel, bias.to(out.dtype), stride=patch).flatten(2).transpose(1, 2)
    if norm is not None:
        x = F.layer_norm(x, x.shape[-1:], norm[0].to(x.dtype), norm[1].to(x.dtype), norm[2])
    out.copy_((x if position is None else x + position.to(x.dtype)).reshape(out.shape))
    sums.copy_(sums_of(out))
    if magnitudes is not None:
        magnitudes[0] = out.abs().sum(1)
