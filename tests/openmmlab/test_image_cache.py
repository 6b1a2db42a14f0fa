"""The cache gives back what it was given or nothing at all, and never takes more room than it may."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401  makes mmdet importable
from sparsevit.openmmlab.image_cache import SHARE, STALE_S, ImageCache, default_folder, digest, key_of
from sparsevit.openmmlab.packed_masks import PackedMasks


def content(seed: int = 0, side: int = 20) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "img": random.integers(0, 256, (side, side + 3, 3), np.uint8),
        "gt_bboxes": random.random((2, 4), np.float32),
        "gt_bboxes_ignore": np.zeros((0, 4), np.float32),
        "gt_masks": PackedMasks.of(random.integers(0, 2, (2, side, side + 3), np.uint8)),
        "img_shape": (side, side + 3, 3),
        "mask_fields": ["gt_masks"],
        "keep_ratio": True,
        "pad_fixed_size": None,
        "filename": "ä.jpg",
        "img_info": {"id": 1},
    }


def assert_same(found: dict[str, Any] | None, given: dict[str, Any]) -> None:
    assert found is not None
    assert found.keys() == given.keys() - {"img_info"}
    for name, value in found.items():
        if isinstance(value, PackedMasks):
            np.testing.assert_array_equal(value.unpack(), given[name].unpack())
        elif isinstance(value, np.ndarray):
            assert value.dtype == given[name].dtype
            np.testing.assert_array_equal(value, given[name])
            value[:0] = 0  # may be written to
        else:
            assert value == given[name]
            assert type(value) is type(given[name])


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 10**6)
    assert cache.read("abc") is None
    cache.keep("abc", content())
    assert_same(cache.read("abc"), content())
    assert cache.read("abd") is None
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"]


@pytest.mark.parametrize("spoilt", [b"", b"half", None])
def test_a_spoilt_file_is_as_good_as_none(tmp_path: Path, spoilt: bytes | None) -> None:
    cache = ImageCache(tmp_path, 10**6)
    cache.keep("abc", content())
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-100] if spoilt is None else spoilt)
    assert cache.read("abc") is None
    cache.keep("abc", content())
    assert_same(cache.read("abc"), content())


def test_a_number_of_numpy_comes_back_as_one_of_python(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 10**6)
    cache.keep("abc", {**content(), "scale": (np.int64(3), np.float32(0.5))})
    assert_same(cache.read("abc"), {**content(), "scale": (3, 0.5)})


def test_the_budget_holds_over_processes(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 20_000)
    workers = [multiprocessing.get_context("fork").Process(target=_keep_many, args=(cache, start)) for start in (0, 50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken = sum(path.stat().st_size for path in files(tmp_path))
    assert 15_000 < taken <= 20_000


def _keep_many(cache: ImageCache, start: int) -> None:
    for number in range(start, start + 50):
        cache.keep(digest(number), content(number))


def test_a_folder_that_refuses_ends_the_keeping(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ImageCache(tmp_path / "file", 10**6)
    cache.keep("abc", content())
    assert cache.read("abc") is None
    (tmp_path / "file").unlink()
    cache.keep("abc", content())
    assert not (tmp_path / "file").exists(), "one refusal is enough"


def test_the_room_is_a_share_of_the_free_disk_and_of_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    assert ImageCache.within(tmp_path, "a", 0).budget == SHARE * 100_000
    assert ImageCache.within(tmp_path, "a", 0, processes=4).budget == SHARE * 25_000
    cache = ImageCache.within(tmp_path, "a", 0, max_gb=1e-5)
    assert cache.budget == 10_000
    cache.keep("abc", content())
    taken = sum(path.stat().st_size for path in files(tmp_path))
    assert ImageCache.within(tmp_path, "a", 0, max_gb=1e-5).budget == 10_000 - taken
    assert ImageCache.within(tmp_path, "a", 0, max_gb=0).budget == 0


def test_images_used_longest_ago_make_room(tmp_path: Path) -> None:
    for age, group in enumerate("abc"):
        cache = ImageCache.within(tmp_path, group, 0)
        cache.keep("abc", content())
        os.utime(cache.folder, (1000 - age, 1000 - age))  # a was used last, c is the oldest
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_bytes(b"not ours")
    size = sum(path.stat().st_size for path in files(tmp_path)) / 3
    ImageCache.within(tmp_path, "d", int(size), max_gb=3.1 * size / 1e9)
    assert {path.name for path in tmp_path.iterdir()} == {"images-a", "images-b", "images-d", "own"}
    ImageCache.within(tmp_path, "d", int(10 * size), max_gb=3.1 * size / 1e9)
    assert {path.name for path in tmp_path.iterdir()} == {"images-d", "own"}


def test_parts_that_were_left_behind_are_removed(tmp_path: Path) -> None:
    folder = ImageCache.within(tmp_path, "a", 0).folder
    for name, age in (("old", STALE_S + 60), ("new", 0.0)):
        part = folder / f".{name}.part"
        part.write_bytes(b"half")
        os.utime(part, (os.stat(part).st_mtime - age,) * 2)
    ImageCache.within(tmp_path, "a", 0)
    assert [path.name for path in files(folder)] == [".new.part"]


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sparsevit" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "sparsevit" / "images"


def test_the_key_covers_file_annotations_and_settings(tmp_path: Path) -> None:
    def results(name: str = "a.jpg", boxes: float = 1.0, masks: Any = ((1, 2, 3, 4, 5, 6),)) -> dict[str, Any]:
        annotations = {"bboxes": np.full((1, 4), boxes, np.float32), "masks": masks}
        return {"img_prefix": str(tmp_path), "img_info": {"filename": name, "id": 3}, "ann_info": annotations}

    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    one = key_of(results(), ["Resize"])
    assert one == key_of(results(), ["Resize"])
    others = [
        key_of(results("b.jpg"), ["Resize"]),
        key_of(results(boxes=2.0), ["Resize"]),
        key_of(results(masks=({"size": [1, 1], "counts": b"02"},)), ["Resize"]),
        key_of(results(), ["Pad"]),
    ]
    (tmp_path / "a.jpg").write_bytes(b"xy")
    others.append(key_of(results(), ["Resize"]))
    os.utime(tmp_path / "a.jpg", (1, 1))
    others.append(key_of(results(), ["Resize"]))
    assert len({one, *others}) == 7
