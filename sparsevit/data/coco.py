"""Writes the built-in data set as image files and a COCO annotation file."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sparsevit.console import progress
from sparsevit.data import digits
from sparsevit.errors import UserError

VERSION = 1  # of what is drawn; raised when the same seed would give other images
BATCH = 8


def write_digits(
    folder: Path, *, split: str = "val", images: int = 500, size: tuple[int, int] = (448, 448), seed: int = 0
) -> Path:
    """Write `images` images of a split below `folder` and return the annotation file, `<split>.json`.

    Written once: an annotation file that was made with the same arguments is returned as it is. Every file appears
    whole, and the annotation file last, so a folder with one is complete. Several processes may write the same one.

    Raises:
        UserError: if the folder cannot be written, holds another data set of that name, or an argument is out of range.
    """
    if images < 1:
        raise UserError(f"the number of images must be at least 1, got {images}")
    digits.check_series(split, seed, size)
    info = {
        "description": "SparseViT digits",
        "version": VERSION,
        "split": split,
        "seed": seed,
        "size": list(size),
        "images": images,
    }
    annotation_file = folder / f"{split}.json"
    try:
        if annotation_file.exists():
            _check_same(annotation_file, info)
            return annotation_file
        (folder / split).mkdir(parents=True, exist_ok=True)
        coco = _write_images(folder, split, images, size, seed)
        _write_whole(annotation_file, json.dumps({**coco, "info": info}).encode())
    except OSError as error:
        raise UserError(f"cannot write the data set to {folder}: {error.strerror or error}") from error
    return annotation_file


def _check_same(annotation_file: Path, info: dict[str, Any]) -> None:
    try:
        found = json.loads(annotation_file.read_bytes())["info"]
        differences = [f"{key} {found[key]}, not {value}" for key, value in info.items() if found[key] != value]
    except (ValueError, KeyError, TypeError):
        differences = ["not written by this program"]
    if differences:
        raise UserError(
            f"{annotation_file} holds another data set ({'; '.join(differences)}): choose another folder or remove it"
        )


def _write_images(folder: Path, split: str, count: int, size: tuple[int, int], seed: int) -> dict[str, Any]:
    from PIL import Image

    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with progress(f"drawing {split} images", count) as step:
        for start in range(0, count, BATCH):
            number = min(BATCH, count - start)
            rendered = digits.render(split, digits.draw_scenes(split, seed, start, number, size), size)
            for i in range(number):
                image_id = start + i + 1
                name = f"{split}/{image_id:06d}.jpg"
                encoded = BytesIO()
                Image.fromarray(rendered.images[i].permute(1, 2, 0).numpy()).save(encoded, format="jpeg", quality=92)
                _write_whole(folder / name, encoded.getvalue())
                records.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
                for box, label, mask in zip(rendered.boxes[i], rendered.labels[i], rendered.masks[i], strict=True):
                    annotation = _annotation(box, int(label), mask)
                    annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
            step(number)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(digits.CLASSES)]
    return {"images": records, "annotations": annotations, "categories": categories}


def _write_whole(file: Path, content: bytes) -> None:
    """Write a file under a name of this process's own, then rename it: nobody ever sees a part of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _annotation(box: Tensor, label: int, mask: Tensor) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    x1, y1, x2, y2 = box.tolist()
    encoded = coco_mask.encode(np.asfortranarray(mask.numpy().view(np.uint8)))
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(coco_mask.area(encoded)),
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
        "category_id": label + 1,
        "iscrowd": 0,
    }
