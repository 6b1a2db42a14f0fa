"""`sparsevit adapt`: make a supernet of a detector by Sparsity-Aware Adaptation."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsevit.cli.training import CfgOptions, Config, Device, Seed, WorkDir, default_work_dir


def adapt(
    config: Config,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Weights of the dense detector; the config's load_from by default.")
    ] = None,
    work_dir: WorkDir = None,
    cfg_options: CfgOptions = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a detector under a fresh random sparsity each iteration, so that one set of weights serves them all.

    Typed again, it resumes from the newest checkpoint. Under torchrun it uses all ranks.

    Example: sparsevit adapt configs/digits/saa.py dense.safetensors --work-dir work_dirs/saa
    """
    from sparsevit.console import console
    from sparsevit.openmmlab.config import load_config, options_of
    from sparsevit.openmmlab.parallel import leave_ranks
    from sparsevit.openmmlab.train import train
    from sparsevit.openmmlab.training_forms import with_adaptation

    start = {"load_from": checkpoint} if checkpoint else {}
    settings = with_adaptation(load_config(config, {**start, **options_of(cfg_options)}), seed)
    last = train(
        settings, work_dir or default_work_dir(config), seed=seed, device=device, title="sparsity-aware adaptation"
    )
    leave_ranks()
    console.print(f"supernet: {last}", markup=False)
