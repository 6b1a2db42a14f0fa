"""Candidates per hour of a search: this project's way of judging them against the plain one, in one run.

    python benchmarks/candidates_per_hour.py --images 500 --json candidates.json
    python benchmarks/candidates_per_hour.py --config builtin:digits/supernet.py --checkpoint builtin:digits --images 4

Plain is what the paper's search does with each candidate: mmdet's `single_gpu_test` image by image, then
`dataset.evaluate`, and 500 timed forwards of the backbone, after as many to warm up unless told otherwise. Here a
candidate's latency is known from the latency model, whose fit is paid for once, so there is nothing to time.
After both, one more candidate is judged with the clock around each stage, waiting for the device every time: it takes
longer so, but shows where time goes.

Without a config the detector is the Mask R-CNN with Swin-T, on images like COCO's that are drawn for it. Nobody has
trained it, so a threshold of 0 lets every image yield as many detections as it may: the dearest case for both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

FIGURES = ("bbox_mAP", "segm_mAP")
PLAIN_PARTS = ("single_gpu_test", "evaluate bbox", "evaluate segm", "timed forwards")
WARM_UP = 4
"""Images that the plain way tests before the clock starts."""


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
    with torch.no_grad():
        for _, batch in zip(range(WARM_UP), loader, strict=False):
            placed(return_loss=False, rescale=True, **batch)
    found = []
    for sparsity in sparsities:
        model.backbone.sparsity = sparsity
        parts: dict[str, float] = {}
        with _quiet():
            results = _timed(parts, PLAIN_PARTS[0], single_gpu_test, placed, loader)
            boxes = _timed(parts, PLAIN_PARTS[1], dataset.evaluate, results, "bbox")
            masks = {}
            if model.with_mask:
                masks = _timed(parts, PLAIN_PARTS[2], dataset.evaluate, results, "segm")
        _timed(parts, PLAIN_PARTS[3], _forwards, model.backbone, given, device)
        found.append(parts | {key: float(value) for key, value in {**boxes, **masks}.items() if key in FIGURES})
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without mmdet's tables, notices and progress bars."""
    import mmcv

    bar = partial(mmcv.ProgressBar, file=io.StringIO())
    with contextlib.redirect_stdout(io.StringIO()), mock.patch("mmcv.ProgressBar", bar), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mock.patch("warnings.simplefilter"):  # mmdet turns one of them on again
            yield


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


def own_judge(config: Any, model: Any, given: argparse.Namespace, device: torch.device) -> Any:
    """What judges the candidates of a search."""
    from sparsevit.openmmlab.datasets import test_dataset
    from sparsevit.openmmlab.evaluation import DetectorEvaluation
    from sparsevit.openmmlab.judging import BATCH, Judge, precision_on

    batch = given.batch or BATCH.get(device.type, 1)
    evaluation = DetectorEvaluation(test_dataset(config.data.test, batched=True), batch=batch, on_device=True)
    judge = Judge(model, evaluation, precision_on(device, given.precision))
    print(f"ours: batches of {batch}, {judge.dtype}, {'engine' if judge.fast else 'plain backbone'}", flush=True)
    return judge


def ours(
    model: Any, judge: Any, sparsities: Sequence[Any], given: argparse.Namespace, device: torch.device
) -> dict[str, list[dict[str, float]]]:
    """Seconds and figures of each candidate, by what is judged.

    Before them stands an extra one, which decodes the images, after them one that is clocked stage by stage.
    """
    runs: dict[str, list[dict[str, float]]] = {}
    for kind in ("bbox", "bbox and segm") if model.with_mask else ("bbox",):
        run = partial(judge.metrics, images=given.images, masks=kind != "bbox")
        clock = Clock(device)
        rows = runs[kind] = []
        with clock.around([(judge.evaluation, "image", "decode")], wait=False):
            rows.append(_row(clock, run, sparsities[0]))
        for sparsity in sparsities:
            rows.append(_row(Clock(device), run, sparsity))
        clock = Clock(device)
        with clock.around(_stages(model, judge), wait=True):
            rows.append(_row(clock, run, sparsities[-1]))
    return runs


def _row(clock: Clock, run: Callable[..., dict[str, float]], sparsity: Any) -> dict[str, float]:
    start = time.perf_counter()
    figures = run(sparsity)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **clock.seconds, **{key: figures[key] for key in FIGURES if key in figures}}


def _stages(model: Any, judge: Any) -> list[tuple[Any, str, str]]:
    """What a stage is called, and where: what it calls itself counts for the inner stage alone."""
    from sparsevit.openmmlab import batched_rpn, batched_test, coco_scoring, mask_overlaps
    from sparsevit.openmmlab import evaluation as evaluating

    parts = [
        (judge.evaluation, "image", "images"),
        (evaluating, "_stacked", "images"),
        (judge._engine or model.backbone, "forward", "backbone"),
        (model.neck, "forward", "neck"),
        (model.rpn_head, "forward", "RPN head"),
        (batched_test, "propose", "proposals"),
        (batched_rpn, "grouped_nms", "proposals: NMS"),
        (batched_test.BatchedTest, "_boxes", "boxes"),
        (batched_test, "grouped_nms", "boxes: NMS"),
        (batched_test, "roi_features", "RoIAlign"),
        (model.roi_head.bbox_head, "forward", "box head"),
        (batched_test.BatchedTest, "detections", "detections"),
        (coco_scoring.Scoring, "add", "pairs"),
        (coco_scoring.Scoring, "figures", "figures"),
    ]
    if model.with_mask:
        parts += [
            (model.roi_head.mask_head, "forward", "mask head"),
            (batched_test, "paste_masks", "mask pasting"),
            (mask_overlaps.TrueMasks, "overlaps", "mask overlaps"),
        ]
    return parts


class Clock:
    """Seconds of stages by name, without those of the stages inside them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    @contextlib.contextmanager
    def around(self, parts: Sequence[tuple[Any, str, str]], *, wait: bool) -> Iterator[None]:
        """Time these callables (an owner, an attribute, a name); `wait` for the device before and after each."""
        with contextlib.ExitStack() as stack:
            for owner, attribute, name in parts:
                timed = self._timed(name, getattr(owner, attribute), wait=wait)
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield

    def _timed(self, name: str, call: Callable[..., Any], *, wait: bool) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = self._now(wait)
            self._inside.append(0.0)
            result = call(*arguments, **options)
            seconds = self._now(wait) - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inside.pop()
            if self._inside:
                self._inside[-1] += seconds
            return result

        return timed

    def _now(self, wait: bool) -> float:
        if wait and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def profile(judge: Any, sparsity: Any, given: argparse.Namespace) -> None:
    """Print how long the GPU itself works on a candidate: the rest of the time it waits for the host."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    with profiling(activities=[ProfilerActivity.CUDA]) as found:
        judge.metrics(sparsity, images=given.images)
    kernels = sorted(found.key_averages(), key=lambda each: -each.self_device_time_total)
    busy, count = sum(each.self_device_time_total for each in kernels), sum(each.count for each in kernels)
    print(f"\nthe GPU works {busy / 1e6:.3f} s on a candidate, in {count} kernels and copies; the longest:")
    for each in kernels[:15]:
        print(f"  {each.self_device_time_total / 1e6:.3f} s {each.count:>6} {each.key[:100]}")


def report(given: argparse.Namespace, device: torch.device, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Print seconds per candidate, medians; returns all that was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"\n{name}, {os.cpu_count()} cores, torch {torch.__version__}; seconds of a candidate of {given.images} images:"
    )
    plain_rows = runs["plain"]
    parts = {key: _median(plain_rows, key) for key in PLAIN_PARTS} if plain_rows else {}
    for key, seconds in parts.items():
        print(f"  plain  {key:<18}{seconds:9.3f}")
    result: dict[str, Any] = {"device": name, "images": given.images, "plain": parts, "runs": runs}
    for kind in ("bbox", "bbox and segm"):
        if kind not in runs:
            continue
        first, *rows, staged = runs[kind]
        total = _median(rows, "seconds")
        result[kind] = {"total": total}
        print(f"{kind}: {total:.3f} s a candidate ({given.images / total:.0f} images/s), {3600 / total:.0f} an hour")
        if parts:
            before = sum(seconds for key, seconds in parts.items() if kind != "bbox" or key != "evaluate segm")
            print(f"  plain {before:.2f} s, {3600 / before:.0f} an hour: {before / total:.1f} times as many")
            result[kind] |= {"plain": before, "times": before / total}
        decode = f", of which decoding {first['decode']:.2f}" if "decode" in first else ""
        print(f"  the first one {first['seconds']:.2f}{decode}; stage by stage {staged['seconds']:.2f}:")
        print("  " + ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in _only_stages(staged).items()))
        for key in FIGURES:
            pairs = [(one[key], other[key]) for one, other in zip(rows, plain_rows, strict=False) if key in one]
            if pairs:
                apart = max(abs(one - other) for one, other in pairs)
                print(f"  {key}: at most {apart:.4f} from the plain way's (which rounds to 0.001)")
    return result


def _median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row.get(key, 0.0) for row in rows)


def _only_stages(row: dict[str, float]) -> dict[str, float]:
    stages = {key: value for key, value in row.items() if key not in ("seconds", *FIGURES)}
    return {**stages, "rest": row["seconds"] - sum(stages.values())}


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
    parser.add_argument("--plain-candidates", type=int, help="of them judged the plain way too; default: all, 0: none")
    parser.add_argument("--batch", type=int, default=0, help="images judged at once; 0 for the evaluator's own choice")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--forwards", type=int, default=500, help="timed by the plain way for each candidate")
    parser.add_argument("--warm-up", type=int, default=500, help="passes before them")
    parser.add_argument("--latency-batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="of mmdet's loader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--profile", action="store_true", help="on a GPU: which kernels a candidate takes, at the end")
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
    runs: dict[str, list[dict[str, float]]] = {"plain": []}
    if given.plain_candidates != 0:
        print("plain: its candidates", flush=True)
        runs["plain"] = plain(config, model, sparsities[: given.plain_candidates], given, device)
    judge = own_judge(config, model, given, device)
    runs |= ours(model, judge, sparsities, given, device)
    result = report(given, device, runs)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    if given.profile and device.type == "cuda":
        profile(judge, sparsities[-1], given)


if __name__ == "__main__":
    main()
