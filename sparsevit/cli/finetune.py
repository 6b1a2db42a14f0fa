"""`sparsevit finetune`: train a found subnet from the supernet's weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sparsevit.cli.training import (
    CfgOptions,
    Config,
    Device,
    Seed,
    WorkDir,
    default_work_dir,
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
    from sparsevit.folders import check_folder
    from sparsevit.openmmlab.config import load_config, options_of
    from sparsevit.openmmlab.parallel import init_ranks, leave_ranks, on_first_rank
    from sparsevit.openmmlab.train import judge, train

    settings = load_config(config, options_of(cfg_options))
    folder = work_dir or default_work_dir(config)
    check_folder(folder, "--work-dir")  # not only after minutes of judging
    init_ranks()

    def report(title: str, checkpoint: str | Path | None) -> None:
        print_metrics(title, judge(settings, checkpoint, device=device, images=images))

    on_first_rank(partial(report, "before", settings.get("load_from")))
    last = train(settings, folder, seed=seed, device=device, title="finetuning")
    on_first_rank(partial(report, "after", last))
    leave_ranks()
    console.print(f"checkpoint: {last}", markup=False)
