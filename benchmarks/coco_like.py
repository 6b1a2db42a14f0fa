"""Writes a data set that loads as COCO does: JPEG photographs of about 640 x 480, some seven polygons in each.

Textured backgrounds with filled shapes, drawn from seed and number, so that the files are always the same:

    python benchmarks/coco_like.py data/coco_like --images 2000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("ellipse", "polygon", "star", "ring")  # a ring is two polygons, side by side
SIZES = ((640, 480), (640, 427), (480, 640), (427, 640), (640, 360), (500, 375), (333, 500), (612, 612))  # w, h
MEAN_OBJECTS = 7
CROWD_EVERY = 20  # one image in so many has a crowd, which is ignored in training


def write(folder: Path, images: int, *, seed: int = 0, processes: int | None = None) -> Path:
    """Write images and annotations below `folder`; returns the annotation file, `instances.json`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for record, found in pool.imap(partial(_draw, folder, seed), range(images), chunksize=16):
            records.append(record)
            annotations += [{"id": len(annotations) + 1 + i, **each} for i, each in enumerate(found)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    file = folder / "instances.json"
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    os.replace(temporary, file)
    return file


def _draw(folder: Path, seed: int, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image, written, with its record and its annotations still without numbers."""
    cv2.setNumThreads(0)
    random = np.random.default_rng((seed, number))
    width, height = SIZES[random.integers(len(SIZES))]
    width, height = int(width - random.integers(0, 24)), int(height - random.integers(0, 24))
    picture = _background(random, width, height)
    annotations = []
    for _ in range(int(np.clip(random.poisson(MEAN_OBJECTS), 1, 30))):
        kind = int(random.integers(len(CLASSES)))
        side = float(np.exp(random.uniform(np.log(12), np.log(0.6 * min(width, height)))))
        middle = random.uniform((0, 0), (width, height))
        colour = random.integers(0, 256, 3).tolist()
        outlines = [_clipped(outline * side / 2 + middle, width, height) for outline in _outlines(kind, random)]
        outlines = [outline for outline in outlines if _area(outline) >= 8]
        if not outlines:
            continue
        cv2.fillPoly(picture, [np.round(outline).astype(np.int32) for outline in outlines], colour)
        annotations.append({"image_id": number + 1, "category_id": kind + 1, "iscrowd": 0, **_described(outlines)})
    if number % CROWD_EVERY == 0 and annotations:
        annotations.append({**annotations[0], "iscrowd": 1, "segmentation": _block(width, height)})
    name = f"images/{number + 1:06d}.jpg"
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    temporary = folder / f"{name}.part"
    temporary.write_bytes(encoded.tobytes())
    os.replace(temporary, folder / name)
    return {"id": number + 1, "file_name": name, "width": width, "height": height}, annotations


def _background(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth colours with noise on two scales, uint8: about as many bytes in a JPEG as a photograph."""
    picture = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 70.0), (24, 40.0), (160, 25.0)):
        noise = random.standard_normal((cells, cells, 3), dtype=np.float32) * strength
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += random.standard_normal((height, width, 1), dtype=np.float32) * 6
    return (picture + 120).clip(0, 255).astype(np.uint8)


def _outlines(kind: int, random: np.random.Generator) -> list[np.ndarray]:
    """Points `(n, 2)` of a shape's parts, about within -1 to 1."""
    if kind == 1:
        corners = np.sort(random.uniform(0, 2 * np.pi, int(random.integers(3, 9))))
        radius = random.uniform(0.6, 1, len(corners))
    else:
        corners = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radius = 1 + (0.35 * np.cos(5 * corners) if kind == 2 else 0.05 * random.standard_normal(len(corners)))
    outline = np.stack([np.cos(corners) * radius, np.sin(corners) * radius * random.uniform(0.5, 1.5)], axis=1)
    if kind == 3:
        return [outline * 0.45 - (0.55, 0), outline * 0.45 + (0.55, 0)]
    return [outline]


def _clipped(outline: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.round(outline.clip(0, (width, height)), 2)


def _area(outline: np.ndarray) -> float:
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _described(outlines: list[np.ndarray]) -> dict[str, Any]:
    points = np.concatenate(outlines)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": sum(_area(outline) for outline in outlines),
        "segmentation": [outline.ravel().tolist() for outline in outlines],
    }


def _block(width: int, height: int) -> dict[str, Any]:
    """The left half of an image as COCO writes crowds: run lengths, column by column."""
    half = width // 2 * height
    return {"size": [height, width], "counts": [0, half, width * height - half]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, help="default: all cores")
    given = parser.parse_args()
    print(write(given.folder, given.images, seed=given.seed, processes=given.processes))


if __name__ == "__main__":
    main()
