"""`sparsevit worker`: one more process that works on a study, for schedulers that start commands."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsevit.cli.options import Grace, Out, Settings, StudyFile


def worker(
    study: StudyFile,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Finished trials of the study in total, by whichever worker.")
    ] = None,
    out: Out = None,
    setting: Settings = None,
    grace: Grace = None,
) -> None:
    """Work on a study beside others, on this machine or on any that reaches its database; ends when the study is done.

    SIGTERM ends it after the trial it is at. All of them are started alike, in a Slurm array or a Kubernetes job; the
    first one measures. `sparsevit search` with the same study confirms what they found.

    Example: srun --ntasks 8 --gpus-per-task 1 sparsevit worker my_study.toml
    """
    from sparsevit.search.run import work
    from sparsevit.search.spec import StudySpec
    from sparsevit.search.worker import GRACE_S

    work(StudySpec.load(study, setting or []), trials=trials, out=out, grace_s=grace or GRACE_S)
