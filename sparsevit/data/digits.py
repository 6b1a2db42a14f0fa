"""Handwritten digits at many scales on photographs: small objects on a large canvas, with boxes, masks, ten classes.

Digits are scikit-learn's 1,797 scans of 8 x 8 pixels, photographs its two sample images. The training and the
validation split share neither a digit nor a part of a photograph. A *scene* says what lies where; rendering it is the
same code on the CPU (writing a data set) and on a GPU (composing training batches without a file).

B scenes, D digits in a scene (padded with empty ones), N digits in a batch, h w canvas pixels, G side of a patch that
one digit is painted on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sparsevit.errors import UserError

CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "val")
MIN_SIDE = 26  # pixels, of a digit's larger side
CHUNK = 32  # scenes drawn from one generator; scene i depends on the seed and i alone
VAL_EVERY = 6  # every sixth scan is kept for validation
TRAIN_SHARE = 0.65  # of a photograph's width
INK_THRESHOLD = 0.36  # of full ink, where a digit's mask ends
EDGE = 2.5  # how steeply ink becomes opaque around that threshold
MIN_INK = 12  # pixels
CANDIDATES = 24  # places tried for each digit before it is left out


@dataclass(frozen=True)
class Crowd:
    """How much a scene holds, and where.

    fewest, most: number of digits.
    largest: side of the largest digit, as a share of the canvas's smaller side.
    spread: they lie together in a part of the canvas this share of it high and wide; 1 is anywhere.
    """

    fewest: int = 3
    most: int = 8
    largest: float = 0.22
    spread: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.fewest <= self.most and self.most >= 1):
            raise UserError(f"a scene cannot hold {self.fewest} to {self.most} digits: 0 <= fewest <= most, most >= 1")
        if not 0 < self.largest <= 0.9:
            raise UserError(
                f"the largest digit's share of the canvas is {self.largest}, but must lie in 0 < share <= 0.9"
            )
        if not self.largest * 1.1 <= self.spread <= 1:
            raise UserError(
                f"digits spread over {self.spread} of the canvas: at most 1, and at least {self.largest * 1.1:.2g}, "
                f"or the largest has no room"
            )


CROWD = Crowd()


@dataclass(frozen=True)
class Scenes:
    """What a batch of images shows.

    labels: digit class, -1 for an empty place, shape `(B, D)`.
    glyphs: row in the split's scans, shape `(B, D)`.
    centres: x, y in pixels, shape `(B, D, 2)`.
    sides: pixels that the scan's 8 x 8 frame spans, shape `(B, D)`.
    turns: rotation (radians), aspect (log of width over height) and slant, shape `(B, D, 3)`.
    inks: colour, 0 to 1, before it is set apart from its background, shape `(B, D, 3)`.
    photos: which photograph, shape `(B,)`.
    views: centre x, y and height of the crop as shares of the photograph, and flip (0 or 1), shape `(B, 4)`.
    lights: contrast and brightness of the background, shape `(B, 2)`.
    """

    labels: NDArray[np.int64]
    glyphs: NDArray[np.int64]
    centres: NDArray[np.float32]
    sides: NDArray[np.float32]
    turns: NDArray[np.float32]
    inks: NDArray[np.float32]
    photos: NDArray[np.int64]
    views: NDArray[np.float32]
    lights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Rendered:
    """Images and what is in them.

    images: uint8 RGB, shape `(B, 3, h, w)`.
    boxes, labels, masks: for each image, `(n, 4)` pixels x1 y1 x2 y2; `(n,)`; bool `(n, h, w)`.
    """

    images: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor]


@lru_cache(maxsize=1)
def _scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


@lru_cache(maxsize=2)
def scans(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scans `(n, 8, 8)`, ink from 0 to 1, and their classes `(n,)`."""
    images, labels = _scans()
    held_out = np.arange(len(labels)) % VAL_EVERY == 0
    chosen = held_out if split == "val" else ~held_out
    return images[chosen], labels[chosen]


@lru_cache(maxsize=2)
def photographs(split: str) -> NDArray[np.float32]:
    """This split's part of the sample photographs, RGB from 0 to 1, shape `(2, 3, height, width)`."""
    from sklearn.datasets import load_sample_images

    images: Any = load_sample_images().images
    photos = np.stack([np.asarray(image, np.float32) / 255 for image in images]).transpose(0, 3, 1, 2)
    cut = int(photos.shape[-1] * TRAIN_SHARE)
    return np.ascontiguousarray(photos[..., cut:] if split == "val" else photos[..., :cut])


def draw_scenes(split: str, seed: int, start: int, count: int, size: tuple[int, int], crowd: Crowd = CROWD) -> Scenes:
    """Scenes `start` to `start + count` of an endless, reproducible series for a canvas of `(height, width)` pixels.

    Raises:
        UserError: if there is no such split, the seed is negative, or the canvas is too small for the smallest digit.
    """
    check_series(split, seed, size, crowd)
    first, last = start // CHUNK, -(-(start + count) // CHUNK)
    chunks = [_draw_chunk(split, seed, number, size, crowd) for number in range(first, last)]
    keep = slice(start - first * CHUNK, start - first * CHUNK + count)
    names = Scenes.__dataclass_fields__
    return Scenes(**{name: np.concatenate([getattr(chunk, name) for chunk in chunks])[keep] for name in names})


def check_series(split: str, seed: int, size: tuple[int, int], crowd: Crowd = CROWD) -> None:
    """Whether scenes can be drawn with these arguments of `draw_scenes`.

    Raises:
        UserError: as `draw_scenes` does.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: {' or '.join(SPLITS)}")
    if seed < 0:
        raise UserError(f"the seed of a data set must not be negative, got {seed}")
    if min(size) * crowd.largest < MIN_SIDE:
        fits = math.ceil(MIN_SIDE / crowd.largest)
        raise UserError(f"image size {size[0]}x{size[1]} is too small for the digits: each side at least {fits} pixels")


@lru_cache(maxsize=8)  # small batches take their scenes from the same chunk
def _draw_chunk(split: str, seed: int, number: int, size: tuple[int, int], crowd: Crowd) -> Scenes:
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    height, width = size
    _, classes = scans(split)
    shape = (CHUNK, crowd.most)
    glyphs = rng.integers(len(classes), size=shape)
    wanted = rng.integers(crowd.fewest, crowd.most + 1, size=CHUNK)
    log_sides = rng.uniform(np.log(MIN_SIDE), np.log(min(size) * crowd.largest), size=shape)
    sides = np.exp(-np.sort(-log_sides, axis=1))  # large ones are placed first
    turns = rng.normal(0, (0.12, 0.08, 0.08), size=(*shape, 3)).clip(-0.3, 0.3)
    centres = np.zeros((*shape, 2))
    placed = np.zeros(shape, bool)
    extent = np.array([width, height])
    room = extent * crowd.spread
    corner = rng.random((CHUNK, 1, 2)) * (extent - room)
    for place in range(crowd.most):
        margin = sides[:, None, place, None] * 0.55
        candidates = corner + margin + rng.random((CHUNK, CANDIDATES, 2)) * (room - 2 * margin)
        gap = np.abs(candidates[:, :, None] - centres[:, None, :place]).max(axis=-1)
        needed = 0.5 * (sides[:, None, place, None] + sides[:, None, :place])
        free = ((gap >= needed) | ~placed[:, None, :place]).all(axis=-1)
        choice = free.argmax(axis=1)
        centres[:, place] = candidates[np.arange(CHUNK), choice]
        placed[:, place] = free.any(axis=1) & (place < wanted)
    photos = rng.integers(len(photographs(split)), size=CHUNK)
    middles = (rng.random(CHUNK), rng.random(CHUNK))
    views = np.stack([*middles, rng.uniform(0.45, 0.95, CHUNK), rng.integers(2, size=CHUNK)], axis=1)
    lights = np.stack([rng.uniform(0.6, 1.1, CHUNK), rng.uniform(-0.15, 0.15, CHUNK)], axis=1)
    labels = np.where(placed, classes[glyphs], -1)
    as_float = np.float32
    return Scenes(
        labels=labels,
        glyphs=glyphs,
        centres=centres.astype(as_float),
        sides=sides.astype(as_float),
        turns=turns.astype(as_float),
        inks=rng.random((*shape, 3), dtype=as_float),
        photos=photos,
        views=views.astype(as_float),
        lights=lights.astype(as_float),
    )


def render(split: str, scenes: Scenes, size: tuple[int, int], device: torch.device | str = "cpu") -> Rendered:
    """Paint scenes. A digit of fewer than `MIN_INK` pixels is left out of the annotations.

    All digits of the batch are painted at once: each on a square patch of its own, whose ink then goes to the canvas.
    Images are stored with channels last.
    """
    device = torch.device(device)
    height, width = size
    scene_of, place_of = np.nonzero(scenes.labels >= 0)
    scene = torch.from_numpy(scene_of).to(device)
    side = int(np.ceil(scenes.sides.max() * 1.5 / 2) * 2)
    ink = _glyph_ink(split, scenes, scene_of, place_of, side, device)
    corners = np.round(scenes.centres[scene_of, place_of] - side / 2).astype(np.int64)
    steps = torch.arange(side, device=device)
    x, y = (torch.from_numpy(corners[:, axis, None]).to(device) + steps for axis in (0, 1))
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    nearest = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    places = nearest + scene[:, None, None] * (height * width)

    backgrounds = _backgrounds(split, scenes, size, device)
    brightness = backgrounds.mean(dim=1).flatten()[places].mean(dim=(1, 2))
    colours = _apart(torch.from_numpy(scenes.inks[scene_of, place_of]).to(device), brightness)
    opacity = ((ink - INK_THRESHOLD) * EDGE + 0.5).clamp(0, 1) * inside
    digit, row, column = opacity.nonzero(as_tuple=True)  # most of a patch is bare
    inked = places[digit, row, column]
    canvas = backgrounds.permute(0, 2, 3, 1).reshape(-1, 3)
    covered = torch.lerp(canvas[inked], colours[digit], opacity[digit, row, column, None])
    canvas.index_copy_(0, inked, covered)
    images = canvas.mul_(255).round_().to(torch.uint8).view(len(scenes), height, width, 3).permute(0, 3, 1, 2)

    solid = (ink > INK_THRESHOLD) & inside
    masks = torch.zeros(len(ink), height * width, dtype=torch.bool, device=device)
    masks[digit, nearest[digit, row, column]] = solid[digit, row, column]  # solid ink is opaque to some degree
    masks = masks.view(-1, height, width)
    boxes, visible = _boxes(solid, x[:, 0], y[:, 0]), solid.flatten(1).count_nonzero(dim=1) >= MIN_INK
    labels = torch.from_numpy(scenes.labels[scene_of, place_of]).to(device)
    counts = np.bincount(scene_of, minlength=len(scenes))
    if not bool(visible.all()):
        boxes, labels, masks = boxes[visible], labels[visible], masks[visible]
        counts = np.bincount(scene_of[visible.cpu().numpy()], minlength=len(scenes))
    sections = counts.tolist()
    return Rendered(
        images=images,
        boxes=list(torch.split(boxes, sections)),
        labels=list(torch.split(labels, sections)),
        masks=list(torch.split(masks, sections)),
    )


def _backgrounds(split: str, scenes: Scenes, size: tuple[int, int], device: torch.device) -> Tensor:
    """Crops of the photographs, relit; float `(B, 3, h, w)` from 0 to 1."""
    photos = _photographs_on(split, device)
    photo_h, photo_w = photos.shape[-2:]
    view = torch.from_numpy(scenes.views).to(device)
    half_h = view[:, 2]
    half_w = half_h * photo_h / photo_w * (size[1] / size[0])
    shrink = (1 / half_w).clamp(max=1)
    half_h, half_w = half_h * shrink, half_w * shrink
    mirror = 1 - 2 * view[:, 3]
    # A crop is upright, so its x depend on the column alone and its y on the row alone.
    x = (half_w * mirror)[:, None] * _pixel_centres(size[1], device) + ((2 * view[:, 0] - 1) * (1 - half_w))[:, None]
    y = half_h[:, None] * _pixel_centres(size[0], device) + ((2 * view[:, 1] - 1) * (1 - half_h))[:, None]
    grid = torch.stack([x[:, None, :].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    chosen = photos[torch.from_numpy(scenes.photos).to(device)]
    images = F.grid_sample(chosen, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    contrast, brightness = torch.from_numpy(scenes.lights).to(device)[:, :, None, None, None].unbind(1)
    return images.sub_(0.5).mul_(contrast).add_(0.5).add_(brightness).clamp_(0, 1)


def _pixel_centres(count: int, device: torch.device) -> Tensor:
    """Where pixel centres lie along a side that spans -1 to 1, as `grid_sample` counts without aligned corners."""
    return (2 * torch.arange(count, device=device, dtype=torch.float32) + 1) / count - 1


@lru_cache(maxsize=4)
def _photographs_on(split: str, device: torch.device) -> Tensor:
    return torch.from_numpy(photographs(split)).to(device)


def _glyph_ink(
    split: str,
    scenes: Scenes,
    scene_of: NDArray[np.intp],
    place_of: NDArray[np.intp],
    side: int,
    device: torch.device,
) -> Tensor:
    """Scans turned, stretched and enlarged to their size in pixels, centred; ink `(N, G, G)`, about 0 to 1."""
    if len(scene_of) == 0:
        return torch.zeros(0, side, side, device=device)
    glyphs = torch.from_numpy(scans(split)[0][scenes.glyphs[scene_of, place_of]])[:, None]
    glyphs = F.pad(glyphs, (2, 2, 2, 2)).to(device)  # 12 x 12: bicubic edges fade to nothing
    scale = torch.from_numpy(side / (scenes.sides[scene_of, place_of] * 1.5))
    angle, aspect, slant = torch.from_numpy(scenes.turns[scene_of, place_of]).unbind(1)
    stretch = torch.exp(aspect / 2)
    theta = torch.zeros(len(glyphs), 2, 3)
    theta[:, 0, 0] = angle.cos() * scale / stretch
    theta[:, 0, 1] = (angle.sin() + slant) * scale / stretch
    theta[:, 1, 0] = -angle.sin() * scale * stretch
    theta[:, 1, 1] = angle.cos() * scale * stretch
    grid = F.affine_grid(theta.to(device), [len(glyphs), 1, side, side], align_corners=False)
    ink = F.grid_sample(glyphs, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return ink[:, 0]


def _apart(colours: Tensor, brightness: Tensor) -> Tensor:
    """Colours `(N, 3)` that can be told from backgrounds of a brightness `(N,)`: light on dark, dark on light."""
    return torch.where(brightness[:, None] > 0.45, colours * 0.3, 1 - colours * 0.35)


def _boxes(solid: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """Tight boxes `(N, 4)` on the canvas around the ink of patches `(N, G, G)` with corners at `left`, `top`."""
    side = solid.shape[-1]
    columns, rows = solid.any(dim=1).byte(), solid.any(dim=2).byte()
    x1, y1 = left + columns.argmax(dim=1), top + rows.argmax(dim=1)
    x2, y2 = left + side - columns.flip(1).argmax(dim=1), top + side - rows.flip(1).argmax(dim=1)
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def batches(
    split: str,
    seed: int,
    size: tuple[int, int],
    batch: int,
    *,
    crowd: Crowd = CROWD,
    start: int = 0,
    stride: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Rendered]:
    """An endless stream of rendered batches: batch `start`, `start + stride`, … of the series."""
    numbers = itertools.count(start, stride)
    with ThreadPoolExecutor(1) as drawing:  # the next scenes are drawn while these are painted and used
        upcoming = drawing.submit(draw_scenes, split, seed, next(numbers) * batch, batch, size, crowd)
        while True:
            scenes = upcoming.result()
            upcoming = drawing.submit(draw_scenes, split, seed, next(numbers) * batch, batch, size, crowd)
            yield render(split, scenes, size, device)
