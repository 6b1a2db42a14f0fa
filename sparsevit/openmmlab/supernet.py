"""Trains the built-in supernet: dense, Sparsity-Aware Adaptation in two stages, their average, then its model card.

`make supernet` runs it. Each stage resumes where it stopped. Under torchrun all stages use all ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sparsevit.console import console, progress
from sparsevit.model.weights import read_weights
from sparsevit.openmmlab.config import build_model, load_config, options_of
from sparsevit.openmmlab.evaluation import DetectorEvaluation
from sparsevit.openmmlab.hooks import backbone_of
from sparsevit.openmmlab.parallel import init_ranks, leave_ranks, on_first_rank, own_device
from sparsevit.openmmlab.train import train
from sparsevit.sparsity import Sparsity, SparsitySpace

STAGES = ("dense", "saa", "saa_high")  # each a config of that name, starting from the weights of the one before
LAST_SHARE = 0.3  # of the last stage's weights in the average with those of the stage before
SUPERNET = "supernet.safetensors"
FIXED = {"dense": "dense", "uniform 30 %": "0.3", "uniform 60 %": "0.6"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the training; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/supernet"))
    parser.add_argument("--stages", nargs="+", default=[*STAGES, "card"], choices=[*STAGES, "card"])
    parser.add_argument(
        "--config-dir", default="builtin:digits", help="folder with a config for each stage, and supernet.py"
    )
    parser.add_argument(
        "--from-weights", type=Path, help="start of the first stage; default: those of the stage before it"
    )
    parser.add_argument("--random", type=int, default=50, help="random sparsities on the model card")
    parser.add_argument("--cfg-options", nargs="*", default=[], help="key=value set in every config")
    parser.add_argument("--device", default=None)
    given = parser.parse_args(arguments)
    if given.device is None and not torch.cuda.is_available():
        parser.error("training the supernet needs a GPU; to try it small on the CPU: --device cpu with --cfg-options")
    options = options_of(given.cfg_options)
    work: Path = given.work_dir
    init_ranks()
    weights = _train_stages(given, options)
    if "card" in given.stages:
        if weights is None:
            parser.error("no weights to judge: train a stage, or give --from-weights")
        config = load_config(f"{given.config_dir}/supernet.py", options)
        figures = judge(config, weights, device=given.device, count=given.random)
        shown = {name: figures[name] for name in (*FIXED, "random mean") if name in figures}
        on_first_rank(partial(_write, work / "card.json", json.dumps(figures, indent=1)))
        console.print(json.dumps(shown, indent=1))
    leave_ranks()


def _train_stages(given: argparse.Namespace, options: Mapping[str, Any]) -> Path | None:
    """Train the stages that were asked for, and return the newest weights: those, or what earlier calls left."""
    work, weights = given.work_dir, given.from_weights
    for stage in STAGES:
        before, packed = weights, work / f"{stage}.safetensors"
        if stage in given.stages:
            start = {"load_from": str(before)} if before else {}
            config = load_config(f"{given.config_dir}/{stage}.py", {**start, **options})
            last = train(config, work / stage, device=given.device, title=f"training, stage {stage}")
            on_first_rank(partial(pack, config, last, packed))
            weights = packed
        elif packed.is_file() and given.from_weights is None:
            weights = packed
        if stage == STAGES[-1] and weights == packed and before is not None:
            on_first_rank(partial(average, before, packed, LAST_SHARE, work / SUPERNET))
            weights = work / SUPERNET
    return cast("Path | None", weights)


def pack(config: Any, checkpoint: Path, target: Path) -> None:
    """A checkpoint's weights as float16 safetensors, without what can be computed."""
    from safetensors.torch import save_file

    model = build_model(config, checkpoint)
    tensors = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
        if not key.endswith("relative_position_index")
    }
    temporary = target.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"config": "digits/supernet.py"})
    os.replace(temporary, target)


def average(first: Path, second: Path, share: float, target: Path) -> None:
    """Weights between those of two files, `share` of the way from the first to the second, as float16 safetensors."""
    from safetensors.torch import save_file

    weights, others = read_weights(first), read_weights(second)
    mixed = {key: torch.lerp(value.float(), others[key].float(), share).half() for key, value in weights.items()}
    temporary = target.with_suffix(".tmp")
    save_file(mixed, temporary, metadata={"config": "digits/supernet.py"})
    os.replace(temporary, target)


def judge(config: Any, weights: Path, *, device: str | None, count: int, seed: int = 0) -> dict[str, Any]:
    """Metrics of the model card: fixed sparsities and `count` random ones, shared out over the ranks."""
    place = own_device(device)
    model: nn.Module = build_model(config, weights).to(place).eval()
    backbone = backbone_of(model)
    space = SparsitySpace(backbone.depths)
    rng = random.Random(seed)
    wanted: list[tuple[str, Sparsity]] = [(name, space.parse(text)) for name, text in FIXED.items()]
    wanted += [(f"random {i}", space.sample(rng)) for i in range(count)]
    ranked = torch.distributed.is_initialized()
    rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ranked else (0, 1)
    on_first_rank(partial(DetectorEvaluation.of_dataset, config.data.test))  # draws the data set, once
    evaluation = DetectorEvaluation.of_dataset(config.data.test, batch=25 if place.type == "cuda" else 1)
    mine: dict[str, Any] = {}
    with progress("model card", len(wanted[rank::ranks])) as step:
        for name, sparsity in wanted[rank::ranks]:
            backbone.sparsity = sparsity
            start = time.monotonic()
            mine[name] = {"sparsity": str(sparsity), **evaluation.metrics(model)}
            step(1, f"{name}: {mine[name]['bbox_mAP']:.3f} bbox mAP, {time.monotonic() - start:.0f} s")
    figures = mine
    if ranked:
        gathered: list[Any] = [None] * ranks
        torch.distributed.all_gather_object(gathered, mine)
        figures = {name: value for part in gathered for name, value in part.items()}
    drawn = [value for name, value in figures.items() if name.startswith("random ")]
    if drawn:
        keys = [key for key in drawn[0] if key != "sparsity"]
        figures["random mean"] = {key: sum(each[key] for each in drawn) / len(drawn) for key in keys}
    figures["images"] = len(evaluation)
    return figures


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
