"""The benchmark's data set is always the same, and loads as COCO does."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("mmdet")


@pytest.fixture(scope="module")
def coco_like(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "coco_like.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))  # processes that it starts import it by name
        spec = importlib.util.spec_from_file_location("coco_like", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(__import__("sys").modules, "coco_like", module)
        spec.loader.exec_module(module)
        yield module


def test_the_same_seed_writes_the_same_files(coco_like: ModuleType, tmp_path: Path) -> None:
    first, again = (coco_like.write(tmp_path / name, 5, processes=1) for name in "ab")
    other = coco_like.write(tmp_path / "c", 5, seed=1, processes=1)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    for number in range(1, 6):
        name = f"images/{number:06d}.jpg"
        assert (first.parent / name).read_bytes() == (again.parent / name).read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["images", "instances.json"]


def test_polygons_lie_in_their_boxes_and_areas_are_those_of_the_masks(coco_like: ModuleType, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    (tmp_path / "images").mkdir()
    drawn = [coco_like._draw(tmp_path, 0, number) for number in range(12)]
    annotations = [{"id": i + 1, **each} for i, each in enumerate(each for _, found in drawn for each in found)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(coco_like.CLASSES)]
    content = {"images": [record for record, _ in drawn], "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "instances.json"))
    objects = [each for each in annotations if not each["iscrowd"]]
    assert 4 <= len(objects) / len(drawn) <= 10
    for each in objects:
        mask = coco.annToMask(each)
        rows, columns = np.nonzero(mask)
        x, y, w, h = each["bbox"]
        assert columns.min() >= x - 1
        assert columns.max() <= x + w + 1
        assert rows.min() >= y - 1
        assert rows.max() <= y + h + 1
        if each["category_id"] == 1:  # an ellipse does not cross itself
            assert abs(mask.sum() - each["area"]) < 0.1 * each["area"] + 40
    crowds = [each for each in annotations if each["iscrowd"]]
    assert len(crowds) == 1
    assert 0.4 < coco.annToMask(crowds[0]).mean() < 0.6
