"""Patch embedding: cut an image into patches, project them and normalise, straight into token rows.

B images, T tokens, C channels.

Of every 16 rows and 8 columns of a product, thread 4 g + t of a warp of the tensor cores holds rows g and g + 8 of
columns 2 t and 2 t + 1; of the left factor it holds the same. The order of rows, columns and terms of the sum is free,
and is such here that what a thread holds lies together in memory: its two rows are neighbouring tokens, its columns 8
channels of every 32, its terms whole lines of patches. So pixels and tokens go straight between memory and products;
only weights pass through shared memory. Tensors for loads and stores have t, g, the 16 rows and the row of the two as
their first indices, shape (4, 8, BM // 16, 2): in that order Triton shares them out among threads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.sums import slots, sums_of


@triton.jit
def _as_columns(values, ROWS: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr):
    """BC channels in the order of a product's columns, of which GROUP belong together."""
    WIDTH: tl.constexpr = min(BC, GROUP)
    if WIDTH > 8:
        values = tl.reshape(values, (ROWS, BC // WIDTH, 4, WIDTH // 8, 2))
        values = tl.reshape(tl.permute(values, (0, 1, 3, 2, 4)), (ROWS, BC))
    return values


@triton.jit
def _load_weights(
    weight,
    first,
    LINES: tl.constexpr,
    PATCH: tl.constexpr,
    C: tl.constexpr,
    BL: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Weights of BC channels from `first` on, a row for each term of the sum: pixels of BL lines of BP each."""
    k = tl.arange(0, BL * BP)
    line = k // (4 * BP) * 4 + k // 2 % 4
    pixel = k // 8 % (BP // 2) * 2 + k % 2
    c = first + tl.arange(0, BC)
    mask = ((line < LINES) & (pixel < PATCH))[:, None] & (c < C)[None, :]
    values = tl.load(weight + (line * PATCH + pixel)[:, None] * C + c[None, :], mask=mask, other=0.0)
    return _as_columns(values, BL * BP, BC, GROUP)


@triton.jit
def _load_row(start, first, C: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr):
    c = first + tl.arange(0, BC)
    return _as_columns(tl.load(start + c, mask=c < C, other=0.0)[None, :], 1, BC, GROUP)


@triton.jit
def _load_position(
    position, first, token, inside, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr
):
    c = first + tl.arange(0, BC)
    mask = inside[:, None] & (c < C)[None, :]
    return _as_columns(tl.load(position + token[:, None] * C + c[None, :], mask=mask, other=0.0), BM, BC, GROUP)


@triton.jit
def _load_patches(
    image,
    rows,
    height,
    width,
    token_rows,
    token_columns,
    COLOURS: tl.constexpr,
    PATCH: tl.constexpr,
    BL: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr,
    UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """BM patches, UNIT neighbours at a time: a row for each, of BL lines of BP pixels; 0 beyond the image."""
    EACH: tl.constexpr = 2 // UNIT  # units of a thread
    t = tl.arange(0, 4)[:, None, None, None, None, None]
    g = tl.arange(0, 8)[None, :, None, None, None, None]
    sixteen = tl.arange(0, BM // 16)[None, None, :, None, None, None]
    unit = (tl.program_id(0) * (BM // 16) + sixteen) * (8 * EACH) + g * EACH
    columns = token_columns // UNIT
    row = (unit.to(tl.uint32) // columns.to(tl.uint32)).to(tl.int32)  # of all images
    number = (row.to(tl.uint32) // token_rows.to(tl.uint32)).to(tl.int32)
    column = unit - row * columns
    row -= number * token_rows
    if EACH == 2:  # the second may begin a row, and the row an image
        unit += tl.arange(0, 2)[None, None, None, :, None, None]
        column += tl.arange(0, 2)[None, None, None, :, None, None]
        row += (column == columns).to(tl.int32)
        column = tl.where(column == columns, 0, column)
        number += (row == token_rows).to(tl.int32)
        row = tl.where(row == token_rows, 0, row)
    y = row * PATCH
    x = column * (UNIT * PATCH)
    pitch = columns * (UNIT * PATCH) if WHOLE else width
    corner = number.to(tl.int64) * (COLOURS * height * pitch) + y * pitch + x
    line = tl.arange(0, BL // 4)[None, None, None, None, :, None] * 4 + t
    pixel = tl.arange(0, UNIT * BP)
    inside = (unit * UNIT < rows) & (line < COLOURS * PATCH) & (y + line % PATCH < height)
    if BP > PATCH:
        inside &= pixel < PATCH
    if not WHOLE:
        inside &= x + pixel < width
    read = image + (corner + (line // PATCH * height + line % PATCH) * pitch) + pixel
    begin(DEPENDENT)
    pixels = tl.load(read, mask=inside, other=0.0)
    pixels = tl.reshape(pixels, (4, 8, BM // 16, EACH, BL // 4, UNIT, BP // 2, 2))
    return tl.reshape(tl.permute(pixels, (2, 3, 5, 1, 4, 6, 0, 7)), (BM, BL * BP))


@triton.jit
def _row_sums(values, rest, BM: tl.constexpr, BC: tl.constexpr, REST: tl.constexpr):
    """Sums of rows over both blocks; threads add up what they have of both, then exchange it once."""
    if REST:
        values = tl.sum(tl.reshape(values, (BM, BC // 8, 8)), 1) + tl.sum(tl.reshape(rest, (BM, REST // 8, 8)), 1)
    return tl.sum(values, 1)


@triton.jit
def _of_threads(values, BM: tl.constexpr):
    """Values of rows in a product's order, shape (4, 8, BM // 16, 2): four threads have each."""
    values = tl.permute(tl.reshape(values, (BM // 16, 2, 8)), (2, 0, 1))[None, :, :, :]
    return tl.broadcast_to(values, (4, 8, BM // 16, 2))


@triton.jit
def _store_tokens(
    tokens, out, first, m, rows, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr
):
    """Write BC channels of rows `m` from channel `first` on."""
    WIDTH: tl.constexpr = min(BC, GROUP)
    tokens = tl.reshape(tokens, (BM // 16, 2, 8, BC // WIDTH, WIDTH // 8, 4, 2))
    tokens = tl.reshape(tl.permute(tokens, (5, 2, 0, 1, 3, 4, 6)), (4, 8, BM // 16, 2, BC // WIDTH, WIDTH // 4))
    t = tl.arange(0, 4)[:, None, None, None, None, None]
    group = tl.arange(0, BC // WIDTH)[None, None, None, None, :, None]
    c = first + group * WIDTH + t * (WIDTH // 4) + tl.arange(0, WIDTH // 4)
    m = m[:, :, :, :, None, None]
    tl.store(out + m.to(tl.int64) * C + c, tokens, mask=(m < rows) & (c < C))


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
    REST: tl.constexpr,
    GROUP: tl.constexpr,
    COLOURS: tl.constexpr,
    PATCH: tl.constexpr,
    BL: tl.constexpr,
    BP: tl.constexpr,
    UNIT: tl.constexpr,
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
    kernel = _load_weights(weight, 0, LINES, PATCH, C, BL, BP, BC, GROUP)
    before = _load_row(bias, 0, C, BC, GROUP)
    if REST:
        kernel_rest = _load_weights(weight, BC, LINES, PATCH, C, BL, BP, REST, GROUP)
        before_rest = _load_row(bias, BC, C, REST, GROUP)
    patch = _load_patches(
        image, rows, height, width, token_rows, token_columns, COLOURS, PATCH, BL, BP, BM, UNIT, WHOLE, DEPENDENT
    ).to(kernel.dtype)
    acc = tl.dot(patch, kernel) + before
    rest = acc
    if REST:
        rest = tl.dot(patch, kernel_rest) + before_rest
    if NORM:
        deviation = tl.rsqrt(_row_sums(acc * acc, rest * rest, BM, BC, REST) / C + EPS)[:, None]
        acc = acc * deviation * _load_row(scale, 0, C, BC, GROUP) + _load_row(shift, 0, C, BC, GROUP)
        if REST:
            rest = rest * deviation * _load_row(scale, BC, C, REST, GROUP) + _load_row(shift, BC, C, REST, GROUP)
    i = tl.arange(0, BM)
    row = tl.program_id(0) * BM + i // 16 * 16 + i % 8 * 2 + i // 8 % 2
    if POSITION:
        token = row % (token_rows * token_columns)
        acc += _load_position(position, 0, token, row < rows, C, BM, BC, GROUP)
        if REST:
            rest += _load_position(position, BC, token, row < rows, C, BM, REST, GROUP)
    m = _of_threads(row, BM)
    tokens = acc.to(out.dtype.element_ty)
    _store_tokens(tokens, out, 0, m, rows, C, BM, BC, GROUP)
    if REST:
        tokens_rest = rest.to(out.dtype.element_ty)
        _store_tokens(tokens_rest, out, BC, m, rows, C, BM, REST, GROUP)

    S: tl.constexpr = (C + 63) // 64
    mine = (m < rows) & (tl.arange(0, 4) == 0)[:, None, None, None]
    total = _of_threads(_row_sums(acc, rest, BM, BC, REST), BM)
    squares = _of_threads(_row_sums(acc * acc, rest * rest, BM, BC, REST), BM)
    j = tl.arange(0, 2 * SLOTS)
    values = tl.where(j == 0, total[:, :, :, :, None], tl.where(j == 1, squares[:, :, :, :, None], 0.0))
    tl.store(sums + m[:, :, :, :, None] * (2 * S) + j, values, mask=mine[:, :, :, :, None] & (j < 2 * S))
    if MAGNITUDES:  # by products with 1: adding up values that are rounded to 16 bits takes far more instructions
        absolute = tl.dot(tl.abs(tokens), tl.full((BC, 8), 1, tokens.dtype), input_precision="ieee")
        if REST:
            ones = tl.full((REST, 8), 1, tokens.dtype)
            absolute = tl.dot(tl.abs(tokens_rest), ones, absolute, input_precision="ieee")
        tl.store(magnitudes + m, _of_threads(tl.max(absolute, 1), BM), mask=mine)


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
        rows: of a program, a multiple of 16.
    """
    _, colours, height, width = images.shape
    channels = weight.shape[1]
    power = max(2, triton.next_power_of_2(patch))
    token_rows, token_columns = triton.cdiv(height, patch), triton.cdiv(width, patch)
    block, rest = _blocks(channels)
    in_pairs = width % (2 * patch) == 0 and power == patch and 2 * patch * images.element_size() <= 16  # of one load
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
        BC=block,
        REST=rest,
        GROUP=32 if weight.element_size() == 2 else 8,  # of others the right factor cannot be put in order
        COLOURS=colours,
        PATCH=patch,
        BL=max(4, triton.next_power_of_2(colours * patch), triton.cdiv(16, power)),
        BP=power,
        UNIT=2 if in_pairs else 1,
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


def _blocks(channels: int) -> tuple[int, int]:
    """Columns of both blocks of a product: 2/3 and 1/3 of the channels where those are powers of 2, else one block."""
    rest = channels // 3
    if channels % 3 == 0 and rest >= 16 and rest & (rest - 1) == 0:
        return 2 * rest, rest
    return max(16, triton.next_power_of_2(channels)), 0


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
