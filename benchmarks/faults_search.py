"""The search that `faults.py` kills: a made-up supernet whose accuracy and latency are known functions of the windows.

Every evaluation is written to a log, with whether the database knew its accuracy already.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from torch import Tensor, nn

from sparsevit.latency import timing
from sparsevit.latency.results import Timing
from sparsevit.sparsity import Sparsity

DEPTHS = (2, 2, 4, 2)
WINDOWS = (256, 64, 16, 4)
COST_MS = (9.0, 5.0, 4.0, 4.0, 2.0)
BASE_MS = 6.0
WEIGHTS = (0.05, 0.15, 0.10, 0.07, 0.20)
IMAGES = 10
SECONDS = 0.08
"""The longest evaluation; short ones make a kill in the middle of a transaction likely."""

LOG, DATABASE = "FAULTS_LOG", "FAULTS_DATABASE"
"""Environment variables: the file that evaluations are written to, and the URL of the database."""


class Backbone(nn.Module):
    depths = DEPTHS
    window_size = 7
    patch_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.sparsity = Sparsity.of(None, DEPTHS)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


class MadeUp:
    """An evaluator, as a study file names one."""

    def backbone(self) -> nn.Module:
        return Backbone()

    def accuracy(self, sparsity: Sparsity, *, images: int | None = None, step: Any = None) -> Mapping[str, float]:
        text = str(sparsity)
        note("start", sparsity=text, images=images, known=is_known(text, images))
        time.sleep(SECONDS * (zlib.crc32(text.encode()) % 1000) / 1000)
        note("end", sparsity=text, images=images)
        lost = sum(weight * (1 - kept) ** 1.5 for weight, kept in zip(WEIGHTS, kept_shares(sparsity), strict=True))
        return {"accuracy": 0.8 - lost}

    def identity(self) -> Mapping[str, str]:
        return {"supernet": "made up"}


def make(*, config: str | None = None, checkpoint: str = "builtin", device: str, dtype: str) -> MadeUp:
    return MadeUp()


def note(what: str, **rest: Any) -> None:
    """Append one line to the log, in one write, which processes that are killed do not tear."""
    line = json.dumps({"what": what, "at": time.monotonic(), "process": os.getpid(), **rest}) + "\n"
    handle = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def is_known(sparsity: str, images: int | None) -> bool:
    query = sa.text("SELECT 1 FROM sparsevit_accuracies WHERE sparsity = :sparsity AND images = :images")
    while True:
        try:
            with _engine().connect() as connection:
                return connection.execute(query, {"sparsity": sparsity, "images": images or 0}).first() is not None
        except sa.exc.OperationalError:  # a server that is being restarted
            time.sleep(0.2)


@cache
def _engine() -> sa.Engine:
    return sa.create_engine(os.environ[DATABASE], pool_pre_ping=True)


def kept_shares(sparsity: Sparsity) -> list[float]:
    """The share of its windows that each layer keeps."""
    counts = [count for count, stage in zip(WINDOWS, sparsity.stages, strict=True) for _ in stage]
    return [kept / count for kept, count in zip(sparsity.kept(WINDOWS), counts, strict=True)]


def true_ms(sparsity: Sparsity) -> float:
    return BASE_MS + sum(cost * kept for cost, kept in zip(COST_MS, kept_shares(sparsity), strict=True))


def measure(backbone: nn.Module, target: object, sparsities: Sequence[Sparsity], **_: Any) -> list[Timing]:
    """In the place of `timing.measure`."""
    return [Timing(ms, ms * 0.995, ms * 1.005, 20) for ms in map(true_ms, sparsities)]


def main() -> None:
    from sparsevit.cli.app import main as command

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="arguments of the command sparsevit")
    timing.measure = measure  # type: ignore[assignment]
    command(parser.parse_args().words)


if __name__ == "__main__":
    main()
