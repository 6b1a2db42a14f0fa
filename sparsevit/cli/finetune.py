"""`sparsevit finetune`: train a found subnet from the supernet's weights."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsevit.cli.training import (
    CfgOptions,
    Config,
    Device,
    Seed,
    WorkDir,
    default_work_dir,
    options_of,
    print_metrics,
)


def finetune(
    config: Config,
    work_dir: WorkDir = None,
    cfg_options: CfgOptions = None,
    seed: Seed = 0,
    device: Device = "auto",
    images: Annotated[
        int | None, typer.Option(min=1, help="Images that accuracy before and after is judged on; all by default.")
    ] = None,
) -> None:
    """Train a detector at the sparsity its config names, and say how accurate it is before and after.

    Typed again, it resumes from the newest checkpoint. Under torchrun it uses all ranks.

    Example: sparsevit finetune runs/digits/finetune.py --work-dir work_dirs/found
    """
    from sparsevit.console import console
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.train import judge, train

    settings = load_config(config, options_of(cfg_options))
    folder = work_dir or default_work_dir(config)
    print_metrics("before", judge(settings, settings.get("load_from"), device=device, images=images))
    last = train(settings, folder, seed=seed, device=device, title="finetuning")
    print_metrics("after", judge(settings, last, device=device, images=images))
    console.print(f"checkpoint: {last}", markup=False)
