"""The comparison of searches runs, and both ways find the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("mmdet")


def test_both_ways_judge_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "candidates_per_hour.py"
    spec = importlib.util.spec_from_file_location("candidates_per_hour", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = tmp_path / "result.json"
    options = ["data.test.images=2", "data.test.size=(224,224)", f"data.test.folder={tmp_path / 'digits'}"]
    options.append("data.test.pipeline.1.img_scale=(224,224)")
    words = ["--config", "builtin:digits/supernet.py", "--checkpoint", "builtin:digits", "--images", "2"]
    words += ["--size", "64", "--candidates", "1", "--forwards", "1", "--warm-up", "0", "--latency-batch", "1"]
    words += ["--workers", "0", "--device", "cpu", "--json", str(result), "--cfg-options", *options]
    module.main(words)
    found = json.loads(result.read_text())
    (plain,), (first, boxes, _), (_, both, staged) = (found["runs"][key] for key in ("plain", "bbox", "bbox and segm"))
    assert all(plain[part] > 0 for part in module.PLAIN_PARTS)
    assert 0 < plain["bbox_mAP"] < 1
    assert boxes["bbox_mAP"] == both["bbox_mAP"] == pytest.approx(plain["bbox_mAP"], abs=0.002)
    assert both["segm_mAP"] == pytest.approx(plain["segm_mAP"], abs=0.002)
    assert "segm_mAP" not in boxes
    assert 0 < first["decode"] < first["seconds"]
    stages = {key: value for key, value in staged.items() if key != "seconds" and not key.endswith("mAP")}
    assert {
        "backbone",
        "neck",
        "boxes",
        "RoIAlign",
        "mask head",
        "mask pasting",
        "mask overlaps",
        "figures",
    } <= stages.keys()
    assert all(seconds >= 0 for seconds in stages.values())
    assert 0.5 * staged["seconds"] < sum(stages.values()) <= staged["seconds"]
    expected = sum(plain[part] for part in module.PLAIN_PARTS) / found["bbox and segm"]["total"]
    assert found["bbox and segm"]["times"] == pytest.approx(expected)
    assert "times as many" in capsys.readouterr().out
