"""What a latency is a latency of. Two latencies compare only if target and environment are the same."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from sparsevit.errors import UserError
from sparsevit.latency.engines import ENGINES
from sparsevit.latency.environment import environment

__all__ = ["DTYPES", "ENGINES", "MIN_SIDE", "SCOPES", "Target", "environment", "parse_size"]

DTYPES = ("float32", "bfloat16", "float16")
SCOPES = ("backbone", "detector")
MIN_SIDE = 32
"""Smallest image side in pixels: what four stages of a Swin with 4-pixel patches shrink to a single token."""

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_TEXT = re.compile(r"(\S+) threads=(all|\d+) (\S+) batch=(\d+) (\d+x\d+) (\S+) (\S+)")


@dataclass(frozen=True)
class Target:
    """Device, dtype, batch, image size, engine and scope of a latency. A value, with one canonical text form.

    Attributes:
        device: `cpu`, `cuda:0` …, or `auto` until resolved.
        threads: CPU threads; 0 for all, until resolved.
        dtype: one of `DTYPES`.
        batch: images per call; latencies are of the whole batch.
        size: height and width of an image in pixels.
        engine: one of `ENGINES`: `eager`; `compiled` by torch; `graph`, replay of a CUDA graph; `compiled+graph`;
            `fast`, the inference engine.
        scope: `backbone`, or `detector`: from an image on the device to the boxes and masks of its objects, with the
            engine running the backbone and the rest as it is.

    Raises:
        UserError: if a field has a value that no device could take.
    """

    device: str = "auto"
    threads: int = 0
    dtype: str = "float32"
    batch: int = 1
    size: tuple[int, int] = (448, 448)
    engine: str = "eager"
    scope: str = "backbone"

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise UserError(f"device {self.device!r} is unknown: write auto, cpu, or cuda:N")
        device, _, index = self.device.partition(":")
        if device == "cuda":
            object.__setattr__(self, "device", f"cuda:{int(index or 0)}")
        for name, value, allowed in (
            ("dtype", self.dtype, DTYPES),
            ("engine", self.engine, ENGINES),
            ("scope", self.scope, SCOPES),
        ):
            if value not in allowed:
                raise UserError(f"{name} {value!r} is unknown: write {' or '.join(allowed)}")
        _whole("threads", self.threads, 0, "0 means all")
        _whole("batch", self.batch, 1, "images per call")
        if not isinstance(self.size, tuple | list) or len(self.size) != 2:
            raise UserError(f"size {self.size!r} is no pair of height and width")
        object.__setattr__(self, "size", tuple(self.size))
        for side in self.size:
            _whole("image side", side, MIN_SIDE, "pixels")
        ENGINES[self.engine].check_device(self.engine, self.device)

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.device} threads={self.threads or 'all'} {self.dtype} batch={self.batch} "
            f"{height}x{width} {self.engine} {self.scope}"
        )

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target that `str(target)` stands for.

        Raises:
            UserError: if the text is no target.
        """
        match = _TEXT.fullmatch(" ".join(text.split()))
        if match is None:
            raise UserError(f"cannot read the target {text!r}: write it like {cls()}")
        device, threads, dtype, batch, size, engine, scope = match.groups()
        return cls(device, 0 if threads == "all" else int(threads), dtype, int(batch), parse_size(size), engine, scope)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def resolve(self) -> Target:
        """This target on this machine: `auto` becomes the device present, and threads a number. Idempotent.

        On a GPU the threads of the CPU only launch, so 0 becomes 1 there; on a CPU it becomes torch's own count.

        Raises:
            UserError: if the device is not there, or cannot run the engine.
        """
        import torch

        device = self.device
        if device == "auto":
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
        target = replace(self, device=device)
        if target.on_gpu:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if int(device.removeprefix("cuda:")) >= count:
                raise UserError(
                    f"device {device} is not there: torch sees {count or 'no'} CUDA device(s); write cpu or auto"
                )
        ENGINES[self.engine].check_machine(self.engine)
        return replace(target, threads=self.threads or (1 if target.on_gpu else torch.get_num_threads()))


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from `448` or `448x672`.

    Raises:
        UserError: if the text is neither.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if match is None:
        raise UserError(f"cannot read the image size {text!r}: write 448, or height x width as 448x672")
    height, width = match.groups()
    return int(height), int(width or height)


def _whole(name: str, value: Any, least: int, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} {value!r} is no whole number of at least {least} ({what})")
