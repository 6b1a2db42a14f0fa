"""Candidates per hour of a search: this project's way of judging them against the plain one, in one run.

    python benchmarks/candidates_per_hour.py --images 500 --json candidates.json
    python benchmarks/candidates_per_hour.py --config builtin:digits/supernet.py --checkpoint builtin:digits --images 4

Plain is what the paper's search does with each candidate: mmdet's `single_gpu_test` image by image, then
`dataset.evaluate`, and 500 timed forwards of the backbone, after as many to warm up unless told otherwise. Here a
candidate's latency is known from the latency model, whose fit is paid for once, so there is nothing to time.

Without a config the detector is the Mask R-CNN with Swin-T, on images like COCO's that are drawn for it. Nobody has
trained it, so a threshold of 0 lets every image yield as many detections as it may: the dearest case for both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

FIGURES = ("bbox_mAP", "segm_mAP")
PLAIN_PARTS = ("single_gpu_test", "evaluate bbox", "evaluate segm", "timed forwards")


def subject(given: argparse.Namespace) -> tuple[Any, Any]:
    """The config, and its detector with weights."""
    from sparsevit.openmmlab.config import build_model, load_config, options_of

    options = options_of(given.cfg_options)
    if given.config:
        config = load_config(given.config, options)
        return config, build_model(config, given.checkpoint)
    config = load_config("builtin:coco/mask_rcnn_swin_t_supernet.py", options)
    _draw(given.folder, given.images)
    import coco_like

    size = (given.size, given.size)
    steps = [dict(type="LoadImageFromFile"), dict(type="MultiScaleFlipAug", img_scale=size, flip=False, transforms=[
        dict(type="Resize", keep_ratio=True),
        dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
        dict(type="Pad", size=size),
        dict(type="DefaultFormatBundle"),
        dict(type="Collect", keys=["img"]),
    ])]  # fmt: skip
    config.data.test = dict(
        type="CocoDataset",
        ann_file=str(given.folder / "instances.json"),
        img_prefix=str(given.folder),
        classes=coco_like.CLASSES,
        pipeline=steps,
    )
    for head in (config.model.roi_head.bbox_head, config.model.roi_head.mask_head):
        head.num_classes = len(coco_like.CLASSES)
    config.model.test_cfg.rcnn.score_thr = 0.0
    config.model.test_cfg.rcnn.max_per_img = given.detections
    torch.manual_seed(0)
    return config, build_model(config)


def _draw(folder: Path, images: int) -> None:
    import coco_like

    file = folder / "instances.json"
    if not file.is_file() or len(json.loads(file.read_text())["images"]) < images:
        coco_like.write(folder, images)


class Placed(nn.Module):
    """What mmcv's `MMDataParallel` does on one device; its own relies on parts that PyTorch has removed."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.device = device

    def forward(self, **data: Any) -> Any:
        from sparsevit.openmmlab.parallel import to_device

        return self.module(**to_device(data, self.device))


def plain(
    config: Any, model: Any, sparsities: Sequence[Any], given: argparse.Namespace, device: torch.device
) -> list[dict[str, float]]:
    """Seconds of each part, and the figures, of each candidate."""
    from mmdet.apis import single_gpu_test
    from mmdet.datasets import build_dataloader

    from sparsevit.openmmlab.datasets import test_dataset

    dataset = test_dataset(config.data.test, batched=True)
    dataset.data_infos, dataset.img_ids = dataset.data_infos[: given.images], dataset.img_ids[: given.images]
    loader = build_dataloader(dataset, 1, given.workers, dist=False, shuffle=False)
    placed = Placed(model, device).eval()
    found = []
    for sparsity in sparsities:
        model.backbone.sparsity = sparsity
        parts: dict[str, float] = {}
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # mmdet's tables and its notices
            warnings.simplefilter("ignore")
            results = _timed(parts, PLAIN_PARTS[0], single_gpu_test, placed, loader)
            boxes = _timed(parts, PLAIN_PARTS[1], dataset.evaluate, results, "bbox")
            masks = {}
            if model.with_mask:
                masks = _timed(parts, PLAIN_PARTS[2], dataset.evaluate, results, "segm")
        _timed(parts, PLAIN_PARTS[3], _forwards, model.backbone, given, device)
        found.append(parts | {key: float(value) for key, value in {**boxes, **masks}.items() if key in FIGURES})
    return found


def _timed(parts: dict[str, float], name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    start = time.perf_counter()
    result = call(*arguments)
    parts[name] = time.perf_counter() - start
    return result


@torch.no_grad()
def _forwards(backbone: nn.Module, given: argparse.Namespace, device: torch.device) -> None:
    """The paper's protocol: float32, eager, a batch of four, random input, the clock read at each pass."""
    images = torch.randn(given.latency_batch, 3, given.size, given.size, device=device)
    for _ in range(given.warm_up + given.forwards):
        backbone(images)
        if device.type == "cuda":
            torch.cuda.synchronize()


def ours(
    config: Any, model: Any, sparsities: Sequence[Any], given: argparse.Namespace, device: torch.device, masks: bool
) -> list[dict[str, float]]:
    """Seconds of each part, and the figures, of each candidate; of an extra first one all, as it decodes the images."""
    from sparsevit.openmmlab.datasets import test_dataset
    from sparsevit.openmmlab.evaluation import DetectorEvaluation
    from sparsevit.openmmlab.judging import BATCH, Judge, precision_on

    class Clocked(DetectorEvaluation):
        seconds = 0.0

        def _judge(self, results: list[Any]) -> dict[str, float]:
            start = time.perf_counter()
            figures = super()._judge(results)
            self.seconds = time.perf_counter() - start
            return figures

    batch = given.batch or BATCH.get(device.type, 1)
    evaluation = Clocked(test_dataset(config.data.test, batched=True), batch=batch, on_device=True)
    judge = Judge(model, evaluation, precision_on(device, given.precision))
    found = []
    for number, sparsity in enumerate([sparsities[0], *sparsities]):
        start = time.perf_counter()
        figures = judge.metrics(sparsity, images=given.images, masks=masks)
        seconds = time.perf_counter() - start
        parts = {"detect": seconds - evaluation.seconds, "evaluate": evaluation.seconds}
        kept = {key: figures[key] for key in FIGURES if key in figures}
        found.append({"first": seconds, **kept} if number == 0 else {**parts, **kept})
    return found


def report(given: argparse.Namespace, device: torch.device, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Print seconds per candidate of each part, medians; returns all that was measured."""

    def median(rows: list[dict[str, float]], key: str) -> float:
        return statistics.median(row.get(key, 0.0) for row in rows)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"\n{name}, torch {torch.__version__}, {given.images} images, {given.candidates} candidates, seconds of each:"
    )
    parts = {key: median(runs["plain"], key) for key in PLAIN_PARTS}
    for key, seconds in parts.items():
        print(f"  plain  {key:<18}{seconds:9.3f}")
    result: dict[str, Any] = {"device": name, "images": given.images, "plain": parts, "runs": runs}
    for kind in ("bbox", "bbox and segm"):
        if kind not in runs:
            continue
        rows = runs[kind][1:]
        own = {key: median(rows, key) for key in ("detect", "evaluate")}
        total = sum(own.values())
        before = sum(seconds for key, seconds in parts.items() if kind != "bbox" or key != "evaluate segm")
        print(f"{kind}: detect {own['detect']:.3f} ({given.images / own['detect']:.1f} images/s), ", end="")
        print(f"evaluate {own['evaluate']:.3f}; the first one, which decodes, {runs[kind][0]['first']:.2f}")
        print(f"  {total:.3f} s a candidate, {3600 / total:.0f} an hour; ", end="")
        print(f"plain {before:.2f} s, {3600 / before:.0f} an hour: {before / total:.1f} times as many")
        result[kind] = {**own, "total": total, "plain": before, "times": before / total}
        for key in FIGURES:
            if key in rows[0]:
                apart = max(abs(one[key] - other[key]) for one, other in zip(rows, runs["plain"], strict=True))
                print(f"  {key}: at most {apart:.4f} from the plain way's (which rounds to 0.001)")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a detector's config, with its own test data and --checkpoint")
    parser.add_argument("--checkpoint")
    parser.add_argument("--cfg-options", nargs="*", default=[])
    parser.add_argument("--folder", type=Path, default=Path("data/coco_like"), help="of the images that are drawn")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, default=672)
    parser.add_argument("--detections", type=int, default=100, help="of an image, of the detector without a config")
    parser.add_argument("--candidates", type=int, default=3, help="random sparsities")
    parser.add_argument("--batch", type=int, default=0, help="images judged at once; 0 for the evaluator's own choice")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--forwards", type=int, default=500, help="timed by the plain way for each candidate")
    parser.add_argument("--warm-up", type=int, default=500, help="passes before them")
    parser.add_argument("--latency-batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="of mmdet's loader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)

    import sparsevit.openmmlab  # noqa: F401  makes mmdet importable
    from sparsevit.openmmlab.parallel import own_device
    from sparsevit.sparsity import SparsitySpace

    device = own_device(given.device)
    config, model = subject(given)
    model = model.to(device).eval()
    draw, space = random.Random(0), SparsitySpace(model.backbone.depths)
    sparsities = [space.sample(draw) for _ in range(given.candidates)]
    runs = {"plain": plain(config, model, sparsities, given, device)}
    runs["bbox"] = ours(config, model, sparsities, given, device, masks=False)
    if model.with_mask:
        runs["bbox and segm"] = ours(config, model, sparsities, given, device, masks=True)
    result = report(given, device, runs)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
