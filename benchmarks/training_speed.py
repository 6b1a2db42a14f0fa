"""Images per second and peak memory of training, mmdet's stock `train_detector` against this project's `train`.

The same Mask R-CNN with Swin-T, data, batch and image size for all, one after the other in one run:

    python benchmarks/training_speed.py --images 2000 --workers 14 --json training_speed.json

`stock` is mmdet's detector with its own Swin-T in float32 (TF32 where the GPU has it), `stock-fp16` the same with
mmdet's fp16; `dense` is this project's training of the same dense model, `saa` its Sparsity-Aware Adaptation, and
`saa-2` the latter on two GPUs with the same batch on each. Losses are logged every ten iterations. One epoch goes
several times through the data, so that no contender waits for workers that start; this project's first pass also fills
its cache of images, and is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import coco_like

CONTENDERS = ("stock", "stock-fp16", "dense", "saa", "saa-2")
STEP = 25  # iterations between two readings of the clock


def config_of(given: argparse.Namespace) -> Any:
    """The COCO config of Swin-T on the benchmark's data, for both trainers."""
    from sparsevit.openmmlab.config import load_config

    config = load_config("builtin:coco/mask_rcnn_swin_t_dense.py")
    size = (given.size, given.size)
    pipeline = config.data.train.pipeline
    for transform in pipeline:
        if transform["type"] in ("Resize", "Pad"):
            transform["img_scale" if transform["type"] == "Resize" else "size"] = size
    data = dict(
        type="CocoDataset",
        ann_file=str(given.folder / "instances.json"),
        img_prefix=str(given.folder),
        classes=coco_like.CLASSES,
        pipeline=pipeline,
    )
    times = -(-given.iterations * given.batch // given.images)
    config.data = dict(
        val=data,  # nobody is judged on it; mmdet's trainer looks for it
        test=data,
        samples_per_gpu=given.batch,
        workers_per_gpu=given.workers,
        image_cache=dict(folder=str(given.folder / "cache")),
        train=dict(type="RepeatDataset", times=times, dataset=data),
    )
    for head in (config.model.roi_head.bbox_head, config.model.roi_head.mask_head):
        head.num_classes = len(coco_like.CLASSES)
    config.runner = dict(type="EpochBasedRunner", max_epochs=1)
    config.lr_config = dict(policy="step", warmup="linear", warmup_iters=200, warmup_ratio=0.001, step=[27, 33])
    config.log_config = dict(interval=10, hooks=[dict(type="TextLoggerHook")])
    config.custom_hooks = [dict(type="Clock", file=str(given.result), profile=given.profile)]
    config.evaluate_sparsities = None
    config.load_from = str(given.folder / f"weights-{given.size}.pth")
    return config


def register_clock() -> None:
    from mmcv.runner import HOOKS, Hook

    @HOOKS.register_module()
    class Clock(Hook):  # type: ignore[misc]
        """Notes the time every `STEP` iterations, when the device has done them, and the peak of memory."""

        def __init__(self, file: str, profile: str | None = None) -> None:
            self.file, self.profile, self.times = file, profile, []

        def before_train_iter(self, runner: Any) -> None:
            import torch

            if runner.iter % STEP == 0:
                torch.cuda.synchronize()
                self.times.append(time.perf_counter())
            if self.profile and runner.iter == 7 * STEP:
                self.profiler = torch.profiler.profile(with_stack=False)
                self.profiler.__enter__()

        def after_train_iter(self, runner: Any) -> None:
            if self.profile and runner.iter == 7 * STEP + 3:
                self.profiler.__exit__(None, None, None)
                averages = self.profiler.key_averages()
                Path(self.profile).write_text(
                    averages.table(sort_by="self_cuda_time_total", row_limit=70, max_name_column_width=90)
                    + averages.table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60)
                )

        def after_train_epoch(self, runner: Any) -> None:
            import torch

            if runner.rank == 0:
                memory = torch.cuda.max_memory_allocated() / 2**30
                Path(self.file).write_text(json.dumps({"times": self.times, "memory_gib": memory}))


def train_stock(given: argparse.Namespace, fp16: bool) -> None:
    """mmdet's own trainer, with what it needs to start on today's PyTorch and nothing else."""
    import mmcv.parallel._functions as functions
    import torch
    from mmdet.apis import train_detector
    from mmdet.datasets import build_dataset
    from mmdet.models import build_detector

    torch.backends.cuda.matmul.allow_tf32 = True
    streams = functions._get_stream  # takes a device since PyTorch 2, where mmcv gives a number
    functions._get_stream = lambda device: streams(torch.device("cuda", device)) if device >= 0 else None
    config = config_of(given)
    backbone = config.model.backbone
    backbone.type = "SwinTransformer"
    del backbone["pruning_ratios"]
    config.gpu_ids, config.seed, config.device, config.log_level = [0], given.seed, "cuda", "WARNING"
    config.work_dir, config.resume_from = str(given.result.parent), None
    config.workflow = [("train", 1)]
    if fp16:
        config.fp16 = dict(loss_scale="dynamic")
    torch.manual_seed(given.seed)
    dataset = build_dataset(config.data.train)
    del config.data["image_cache"]
    model = build_detector(config.model)
    model.CLASSES = dataset.CLASSES
    train_detector(model, dataset, config, distributed=False, validate=False, meta={}, timestamp="training")


def train_ours(given: argparse.Namespace, saa: bool) -> None:
    from sparsevit.openmmlab.train import train
    from sparsevit.openmmlab.training_forms import with_adaptation

    config = config_of(given)
    if saa:
        with_adaptation(config, given.seed)
    train(config, given.result.parent, seed=given.seed, title=given.contender)


def initial_weights(given: argparse.Namespace) -> None:
    """One checkpoint that all start from."""
    import torch

    from sparsevit.openmmlab.config import build_model

    torch.manual_seed(0)
    config = config_of(given)
    torch.save({"state_dict": build_model(config).state_dict()}, config.load_from)


def run_alone(given: argparse.Namespace, contender: str, scratch: Path) -> dict[str, Any]:
    """Train in a process of its own (one per GPU), and say what came of it."""
    work_dir = scratch / contender
    work_dir.mkdir()
    gpus = int(contender.rpartition("-")[2]) if contender.startswith("saa-") else 1
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)] if gpus > 1 else []
    names = ("images", "batch", "size", "workers", "iterations", "seed", "folder")
    options = [f"--{name}={getattr(given, name)}" for name in names]
    if given.profile:
        options.append(f"--profile={Path(given.profile).absolute()}.{contender}.txt")
    result = work_dir / "clock.json"
    log = work_dir / "output.txt"
    command = [sys.executable, *launch, __file__, f"--contender={contender}", f"--result={result}", *options]
    with log.open("w") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if code or not result.is_file():
        raise SystemExit(f"{contender} failed:\n{log.read_text()[-4000:]}")
    measured = json.loads(result.read_text())
    times = measured["times"]
    rates = [STEP * given.batch * gpus / (b - a) for a, b in pairwise(times)]
    # Readings before every image was seen once; mmdet decodes each image each time.
    filling = 1 if contender.startswith("stock") else -(-given.images // (given.batch * gpus * STEP))
    steady = rates[max(2, filling) :]
    losses = [json.loads(line) for path in work_dir.glob("*.log.json") for line in path.read_text().splitlines()]
    return {
        "contender": contender,
        "gpus": gpus,
        "images_per_second": statistics.median(steady),
        "first_pass": statistics.median(rates[1:filling]) if filling > 1 else None,
        "all_rates": rates,
        "memory_gib": measured["memory_gib"],
        "losses": [entry for entry in losses if "loss" in entry],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default="stock,stock-fp16,dense,saa", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="on each GPU")
    parser.add_argument("--size", type=int, default=672)
    parser.add_argument("--workers", type=int, default=14, help="for each GPU")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the data, which is written if it is not there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", help="write tables of where four iterations spend their time to this name")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, default=Path("none"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        import sparsevit.openmmlab  # noqa: F401  makes mmdet importable

        register_clock()
        if given.contender.startswith("stock"):
            train_stock(given, given.contender == "stock-fp16")
        else:
            train_ours(given, given.contender != "dense")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        given.folder = given.folder or Path(scratch) / "data"
        if not (given.folder / "instances.json").is_file():
            coco_like.write(given.folder, given.images)
        if not (given.folder / f"weights-{given.size}.pth").is_file():
            initial_weights(given)
        rows = []
        for contender in given.contenders.split(","):
            rows.append(run_alone(given, contender, Path(scratch)))
            row = rows[-1]
            first = f", first pass {row['first_pass']:.1f}" if row["first_pass"] else ""
            print(
                f"{contender:>10}: {row['images_per_second']:6.1f} images/s{first}, peak {row['memory_gib']:.1f} GiB, "
                f"last losses {[round(each['loss'], 3) for each in row['losses'][-3:]]}",
                flush=True,
            )
            if given.json:
                given.json.write_text(
                    json.dumps({"settings": vars(given) | {"folder": None}, "rows": rows}, default=str)
                )


if __name__ == "__main__":
    main()
