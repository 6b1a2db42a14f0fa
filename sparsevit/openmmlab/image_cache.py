"""Decoded and resized images with their annotations, kept on disk so that they are computed once.

One file for each image, written whole. Any number of processes may use the same folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.openmmlab.packed_masks import PackedMasks

FORMAT = 1  # of the files; raised when they change
SHARE = 0.6  # of the free disk
MOST_GB = 200.0
STALE_S = 3600.0  # a part of a file that was not renamed by then never will be
_GROUP = "images-"
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
    return digest(FORMAT, path, status.st_size, status.st_mtime_ns, info, results["ann_info"], settings)


def digest(*content: Any) -> str:
    """A short name for values that JSON and arrays can express; another one for other values."""
    return hashlib.blake2b(json.dumps(content, default=_plain).encode(), digest_size=16).hexdigest()


class ImageCache:
    """A folder that this process and the workers it starts may fill with at most `budget` more bytes.

    Args:
        folder: made when the first image is kept.
        budget: an image beyond it is not kept.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        self._added = multiprocessing.Value("q", 0)

    @classmethod
    def within(cls, root: Path, group: str, needed: int, *, max_gb: float = MOST_GB, processes: int = 1) -> ImageCache:
        """The cache of a group of images below `root`, which altogether may take 60 % of the disk that is free without
        it, and at most `max_gb` (10^9 bytes). If that is too little, the groups used longest ago are removed.

        Args:
            group: tells these images from others, as from `digest`.
            needed: bytes that this group will have at the end, about.
            processes: how many fill the folder, this one among them; each gets its share of what is left.

        Raises:
            OSError: if the folder cannot be made or changed.
        """
        folder = root / f"{_GROUP}{group}"
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        used = {place: _size_of(place) for place in root.glob(f"{_GROUP}*") if place.is_dir()}
        most = min(max_gb * 1e9, SHARE * (shutil.disk_usage(root).free + sum(used.values())))
        own = used.pop(folder, 0)
        for place in sorted(used, key=_time_of):
            if sum(used.values()) + max(needed, own) <= most:
                break
            shutil.rmtree(place, ignore_errors=True)
            del used[place]
        return cls(folder, int(max(0, most - own - sum(used.values()))) // processes)

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
        content = save(arrays, {"results": json.dumps(plain, default=_plain)})
        if not self._reserve(len(content)):
            return
        file = self._file(key)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, file)
        except OSError:  # full, or not ours to write to: training goes on without
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._added.value = self.budget

    def _reserve(self, size: int) -> bool:
        with self._added.get_lock():
            fits: bool = self._added.value + size <= self.budget
            if fits:
                self._added.value += size
        return fits

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.safetensors"


def _size_of(folder: Path) -> int:
    """Bytes of all images of a group; parts that a stopped process left behind are removed."""
    total = 0
    now = time.time()
    for place, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(place, name)
            try:
                status = os.stat(file)
                if name.endswith(".part") and now - status.st_mtime > STALE_S:
                    os.unlink(file)
                    continue
            except OSError:  # renamed or removed meanwhile
                continue
            total += status.st_size
    return total


def _time_of(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
