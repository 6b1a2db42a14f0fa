"""Images per second of training data alone: mmdet's own loader against this project's, first epoch and second.

    python benchmarks/data_loading.py --images 2000 --workers 14 --batch 16

Without `--folder` the data is written first, by coco_like.py. On a GPU the batches end there, ready to train on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import coco_like
import torch

import sparsevit.openmmlab  # noqa: F401  makes mmdet importable

# isort: split
from mmdet.datasets import build_dataloader, build_dataset

from sparsevit.openmmlab.coco_loader import device_loader
from sparsevit.openmmlab.parallel import own_device, to_device


def pipeline(size: int) -> list[dict[str, Any]]:
    """The training pipeline of the published Mask R-CNN configs, at one square size."""
    return [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
        dict(type="Resize", img_scale=(size, size), keep_ratio=False),
        dict(type="RandomFlip", flip_ratio=0.5),
        dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
        dict(type="Pad", size_divisor=32),
        dict(type="DefaultFormatBundle"),
        dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels", "gt_masks"]),
    ]


def seconds(loader: Any, device: torch.device) -> float:
    """How long an epoch takes when nothing is done with it."""
    start = time.perf_counter()
    for batch in loader:
        to_device(batch, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="with images and instances.json")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=672)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    device = own_device()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch) / "data"
        if given.folder is None:
            coco_like.write(folder, given.images)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints while it reads
            dataset = build_dataset(
                dict(
                    type="CocoDataset",
                    ann_file=str(folder / "instances.json"),
                    img_prefix=str(folder),
                    classes=coco_like.CLASSES,
                    pipeline=pipeline(given.size),
                )
            )
        arguments = (dataset, given.batch, given.workers)
        cache = {"folder": str(Path(scratch) / "cache")}
        loaders = {
            "mmdet": build_dataloader(*arguments, dist=False, seed=0, persistent_workers=given.workers > 0),
            "sparsevit": device_loader(*arguments, 0, 1, device, 0, cache),
        }
        size = f"{given.size}x{given.size}"
        print(f"{len(dataset)} images at {size}, batch {given.batch}, {given.workers} workers, {device}")
        for name, loader in loaders.items():
            rates = [len(loader) * given.batch / seconds(loader, device) for _ in range(given.epochs)]
            print(f"{name:>10}: {', '.join(f'{rate:.1f}' for rate in rates)} images/s (epochs 1, 2, …)", flush=True)


if __name__ == "__main__":
    main()
