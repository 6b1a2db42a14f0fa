"""Decoded and resized images with their annotations, kept on disk so that they are computed once.

One file for each image, written whole. Any number of processes may use the same folder.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.openmmlab.packed_masks import PackedMasks

FORMAT = 1  # of the files; raised when they change
SHARE = 0.6  # of the free disk
MOST_GB = 200.0
_ELSEWHERE = ("img_info", "ann_info", "img_prefix", "seg_prefix", "proposal_file", "proposals")


def default_folder() -> Path:
    """`sparsevit/images` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsevit" / "images"


def key_of(results: dict[str, Any], settings: Any) -> str:
    """Names what transforms with these settings make of mmdet's `results` before any transform has run.

    Covers the image file (path, size, time of change), its annotations and the settings.
    """
    info = results["img_info"]
    path = os.path.abspath(os.path.join(results["img_prefix"] or "", info["filename"]))
    status = os.stat(path)
    content = [FORMAT, path, status.st_size, status.st_mtime_ns, info, results["ann_info"], settings]
    return hashlib.blake2b(json.dumps(content, default=_plain).encode(), digest_size=20).hexdigest()


class ImageCache:
    """A folder of at most `budget` bytes that this process and the workers it starts may add.

    Args:
        folder: made when the first image is kept.
        budget: bytes; an image beyond it is not kept.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        self._added = multiprocessing.Value("q", 0)

    @classmethod
    def within(cls, folder: Path | None = None, max_gb: float = MOST_GB, processes: int = 1) -> ImageCache:
        """A cache whose folder may take 60 % of the disk that is free without it, and at most `max_gb` (10^9 bytes).

        Args:
            processes: how many share what is left.
        """
        folder = folder or default_folder()
        used = size_of(folder)
        existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        most = min(max_gb * 1e9, SHARE * (shutil.disk_usage(existing).free + used))
        return cls(folder, max(0, int(most - used)) // processes)

    def read(self, key: str) -> dict[str, Any] | None:
        """What was kept under `key`, masks packed; None if nothing was, or it cannot be read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(key), framework="numpy") as stored:
                plain = json.loads(stored.metadata()["results"])
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        results: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) and not name.endswith("_fields") else value
            for name, value in plain["values"].items()
        }
        for name, (height, width) in plain["masks"].items():
            results[name] = PackedMasks(arrays.pop(f"{name}.bits"), arrays.pop(f"{name}.table"), height, width)
        return {**results, **arrays}

    def keep(self, key: str, results: dict[str, Any]) -> None:
        """Write `results` (masks packed) under `key`, unless the budget is spent or the disk refuses."""
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {}
        plain: dict[str, dict[str, Any]] = {"values": {}, "masks": {}}
        for name, value in results.items():
            if name in _ELSEWHERE:
                continue
            if isinstance(value, PackedMasks):
                arrays |= {f"{name}.bits": value.bits, f"{name}.table": value.table}
                plain["masks"][name] = (value.height, value.width)
            elif isinstance(value, np.ndarray):
                arrays[name] = np.ascontiguousarray(value)
            else:
                plain["values"][name] = value
        content = save(arrays, {"results": json.dumps(plain)})
        if not self._reserve(len(content)):
            return
        file = self._file(key)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, file)
        except OSError:  # full, or not ours to write to: training goes on without
            temporary.unlink(missing_ok=True)
            self._reserve(self.budget + 1 - self._added.value)

    def _reserve(self, size: int) -> bool:
        with self._added.get_lock():
            fits: bool = self._added.value + size <= self.budget
            if fits:
                self._added.value += size
        return fits

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.safetensors"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:  # renamed meanwhile
                continue
    return total


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
