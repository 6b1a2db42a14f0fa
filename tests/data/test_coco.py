"""The data set on disk: COCO that others read, written once, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsevit import UserError
from sparsevit.data import digits
from sparsevit.data.coco import write_digits

ARGUMENTS: dict[str, Any] = {"split": "val", "images": 10, "size": (128, 160), "seed": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, **ARGUMENTS)
    return folder


def test_files(written: Path) -> None:
    names = {f"val/{i:06d}.jpg" for i in range(1, 11)} | {"val.json"}
    assert contents(written).keys() == names
    with Image.open(written / "val/000001.jpg") as image:
        assert image.size == (160, 128)
        drawn = digits.render("val", digits.draw_scenes("val", 4, 0, 1, (128, 160)), (128, 160)).images[0]
        difference = np.asarray(image, dtype=float) - drawn.permute(1, 2, 0).numpy()
    assert np.abs(difference).mean() < 5  # grey levels; JPEG


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools' decode
def test_pycocotools_reads_it_and_finds_the_same_masks(written: Path) -> None:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO(str(written / "val.json"))
    assert [category["name"] for category in data.loadCats(data.getCatIds())] == list(digits.CLASSES)
    assert data.getImgIds() == list(range(1, 11))
    annotations = data.loadAnns(data.getAnnIds())
    assert sorted(annotation["id"] for annotation in annotations) == list(range(1, len(annotations) + 1))
    rendered = digits.render("val", digits.draw_scenes("val", 4, 0, 10, (128, 160)), (128, 160))
    for i in range(10):
        own = data.loadAnns(data.getAnnIds(imgIds=[i + 1]))
        assert [annotation["category_id"] - 1 for annotation in own] == rendered.labels[i].tolist()
        for annotation, mask in zip(own, rendered.masks[i].numpy(), strict=True):
            assert np.array_equal(data.annToMask(annotation).astype(bool), mask)
            assert annotation["area"] == mask.sum()
            x, y, width, height = annotation["bbox"]
            rows, columns = mask.nonzero()
            assert (x, y, x + width, y + height) == (
                columns.min(),
                rows.min(),
                columns.max() + 1,
                rows.max() + 1,
            )


def test_written_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(written)
    monkeypatch.setattr(digits, "render", None)  # nothing is drawn again
    assert write_digits(written, **ARGUMENTS) == written / "val.json"
    assert contents(written) == before


def test_another_folder_gets_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "deep" / "er", **ARGUMENTS)
    assert contents(tmp_path / "deep" / "er") == contents(written)


@pytest.mark.parametrize(
    ("other", "says"),
    [({"seed": 5}, "seed 4, not 5"), ({"images": 11}, "images 10, not 11"), ({"size": (128, 128)}, "size")],
)
def test_another_data_set_of_that_name_is_refused(written: Path, other: dict[str, Any], says: str) -> None:
    before = contents(written)
    with pytest.raises(UserError, match=rf"val.json holds another data set \(.*{says}.*choose another folder"):
        write_digits(written, **ARGUMENTS | other)
    assert contents(written) == before


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"info": {"seed": 4}}), json.dumps({"info": None})])
def test_a_file_of_someone_else_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(UserError, match="not written by this program"):
        write_digits(tmp_path, **ARGUMENTS)
    assert contents(tmp_path) == {"val.json": content.encode()}


@pytest.mark.parametrize(
    "bad", [{"images": 0}, {"split": "test"}, {"seed": -1}, {"size": (64, 448)}], ids=lambda bad: next(iter(bad))
)
def test_bad_arguments_write_nothing(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        write_digits(tmp_path / "new", **ARGUMENTS | bad)
    assert not (tmp_path / "new").exists()


def test_interrupted_writing_is_completed_by_the_next_call(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.replace, 0

    def interrupted(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("sparsevit.data.coco.os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_digits(tmp_path, **ARGUMENTS)
    assert contents(tmp_path).keys() == {f"val/{i:06d}.jpg" for i in range(1, 5)}  # no part of a file either
    write_digits(tmp_path, **ARGUMENTS)
    assert contents(tmp_path) == contents(written)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UserError, match=r"cannot write the data set to .*locked/digits: Permission denied"):
        write_digits(locked / "digits", **ARGUMENTS)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write the data set to .*taken"):
        write_digits(tmp_path / "taken", **ARGUMENTS)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write the data set to .*: No space left on device"):
        write_digits(tmp_path, **ARGUMENTS)
    assert contents(tmp_path) == {}
