"""Handwritten digits at many scales on photographs: small objects on a large canvas, with boxes, masks and ten classes.

Digits are scikit-learn's 1,797 scans of 8 x 8 pixels, photographs its two sample images. The training and the validation
split share neither a digit nor a part of a photograph. A *scene* says what lies where; rendering it is the same code on
the CPU (writing a data set) and on a GPU (composing training batches without a file).

B scenes, D digits in a scene (padded with empty ones), N digits in a batch, h w canvas pixels, G side of a rendered glyph.
"""

from __future__ import annotations

import itertools
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
    """How much a scene holds: fewest and most digits, and the largest one as a share of the canvas's smaller side."""

    fewest: int = 3
    most: int = 8
    largest: float = 0.22


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
    chosen = held_out if _check(split) == "val" else ~held_out
    return images[chosen], labels[chosen]


@lru_cache(maxsize=2)
def photographs(split: str) -> NDArray[np.float32]:
    """This split's part of the sample photographs, RGB from 0 to 1, shape `(2, 3, height, width)`."""
    from sklearn.datasets import load_sample_images

    images: Any = load_sample_images().images
    photos = np.stack([np.asarray(image, np.float32) / 255 for image in images]).transpose(0, 3, 1, 2)
    cut = int(photos.shape[-1] * TRAIN_SHARE)
    return np.ascontiguousarray(photos[..., :cut] if _check(split) == "train" else photos[..., cut:])


def draw_scenes(
    split: str, seed: int, start: int, count: int, size: tuple[int, int], crowd: Crowd = Crowd()  # noqa: B008  frozen
) -> Scenes:
    """Scenes `start` to `start + count` of an endless, reproducible series for a canvas of `(height, width)` pixels.

    Raises:
        UserError: if the canvas is too small for the smallest digit.
    """
    if min(size) * crowd.largest < MIN_SIDE:
        raise UserError(f"image size {size[0]}x{size[1]} is too small for the digits: at least {MIN_SIDE / crowd.largest:.0f}")
    first, last = start // CHUNK, -(-(start + count) // CHUNK)
    chunks = [_draw_chunk(split, seed, number, size, crowd) for number in range(first, last)]
    keep = slice(start - first * CHUNK, start - first * CHUNK + count)
    names = Scenes.__dataclass_fields__
    return Scenes(**{name: np.concatenate([getattr(chunk, name) for chunk in chunks])[keep] for name in names})


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
    for place in range(crowd.most):
        margin = sides[:, None, place, None] * 0.55
        candidates = margin + rng.random((CHUNK, CANDIDATES, 2)) * (extent - 2 * margin)
        gap = np.abs(candidates[:, :, None] - centres[:, None, :place]).max(axis=-1)
        needed = 0.5 * (sides[:, None, place, None] + sides[:, None, :place])
        free = ((gap >= needed) | ~placed[:, None, :place]).all(axis=-1)
        choice = free.argmax(axis=1)
        centres[:, place] = candidates[np.arange(CHUNK), choice]
        placed[:, place] = free.any(axis=1) & (place < wanted)
    photos = rng.integers(len(photographs(split)), size=CHUNK)
    views = np.stack([rng.random(CHUNK), rng.random(CHUNK), rng.uniform(0.45, 0.95, CHUNK), rng.integers(2, size=CHUNK)], 1)
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

    All digits of the batch are painted at once (their ink does not overlap), on a canvas with a margin that takes what
    reaches over the edge.
    """
    device = torch.device(device)
    scene_of, place_of = np.nonzero(scenes.labels >= 0)
    side = int(np.ceil(scenes.sides.max() * 1.5 / 2) * 2)
    margin = side // 2 + 1
    height, width = size[0] + 2 * margin, size[1] + 2 * margin
    ink = _glyph_ink(split, scenes, scene_of, place_of, side, device)
    corners = torch.from_numpy(np.round(scenes.centres[scene_of, place_of] - side / 2).astype(np.int64)).to(device) + margin
    steps = torch.arange(side, device=device)
    pixels = ((corners[:, 1, None] + steps)[:, :, None] * width + (corners[:, 0, None] + steps)[:, None, :]).flatten(1)
    scene = torch.from_numpy(scene_of).to(device)

    images = F.pad(_backgrounds(split, scenes, size, device), (margin,) * 4, mode="replicate")
    canvas = images.permute(0, 2, 3, 1).reshape(-1, 3)
    places = pixels + scene[:, None] * (height * width)
    brightness = canvas.mean(dim=1)[places].mean(dim=1)
    colours = _apart(torch.from_numpy(scenes.inks[scene_of, place_of]).to(device), brightness)
    opacity = ((ink.flatten(1) - INK_THRESHOLD) * EDGE + 0.5).clamp(0, 1)
    digit, pixel = opacity.nonzero(as_tuple=True)  # most of a patch is bare
    inked = places[digit, pixel]
    canvas.index_copy_(0, inked, torch.lerp(canvas[inked], colours[digit], opacity[digit, pixel, None]))
    images = canvas.view(len(scenes), height, width, 3)[:, margin:-margin, margin:-margin].permute(0, 3, 1, 2)

    masks = torch.zeros(len(ink), height * width, dtype=torch.bool, device=device)
    solid = ink.flatten(1) > INK_THRESHOLD
    masks.scatter_(1, pixels, solid)
    masks = masks.view(-1, height, width)[:, margin:-margin, margin:-margin]
    boxes, visible = _boxes(masks), solid.count_nonzero(dim=1) >= MIN_INK
    labels = torch.from_numpy(scenes.labels[scene_of, place_of]).to(device)
    counts = np.bincount(scene_of, minlength=len(scenes))
    if not bool(visible.all()):
        boxes, labels, masks = boxes[visible], labels[visible], masks[visible]
        counts = np.bincount(scene_of[visible.cpu().numpy()], minlength=len(scenes))
    return Rendered(
        images=(images.clamp(0, 1) * 255).round().to(torch.uint8),
        boxes=list(boxes.split(counts.tolist())),
        labels=list(labels.split(counts.tolist())),
        masks=list(masks.split(counts.tolist())),
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
    theta = torch.zeros(len(scenes), 2, 3, device=device)
    theta[:, 0, 0] = half_w * (1 - 2 * view[:, 3])
    theta[:, 1, 1] = half_h
    theta[:, 0, 2] = (2 * view[:, 0] - 1) * (1 - half_w)
    theta[:, 1, 2] = (2 * view[:, 1] - 1) * (1 - half_h)
    grid = F.affine_grid(theta, [len(scenes), 3, *size], align_corners=False)
    chosen = photos[torch.from_numpy(scenes.photos).to(device)]
    images = F.grid_sample(chosen, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    light = torch.from_numpy(scenes.lights).to(device)[:, :, None, None, None]
    return ((images - 0.5) * light[:, 0] + 0.5 + light[:, 1]).clamp(0, 1)


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


def _boxes(masks: Tensor) -> Tensor:
    """Tight boxes `(N, 4)` of masks `(N, h, w)`."""
    height, width = masks.shape[-2:]
    columns, rows = masks.any(dim=1).float(), masks.any(dim=2).float()
    x1, y1 = columns.argmax(dim=1), rows.argmax(dim=1)
    x2, y2 = width - columns.flip(1).argmax(dim=1), height - rows.flip(1).argmax(dim=1)
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def batches(
    split: str,
    seed: int,
    size: tuple[int, int],
    batch: int,
    *,
    crowd: Crowd = Crowd(),  # noqa: B008  frozen
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


def _check(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: {' or '.join(SPLITS)}")
    return split
