"""The search's default evaluator: its accuracy, what its identity depends on, and the finetune config it exports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from sparsevit.errors import UserError
from sparsevit.search.evaluator import Described, Exporter, Identified, Shrinkable
from sparsevit.sparsity import Sparsity

FOUND = Sparsity.of("0.3/0/0.1,0.2,0.2/0", (2, 2, 6, 2))


@pytest.fixture
def weights(tiny: Callable[..., Path]) -> Path:
    from sparsevit.openmmlab.config import build_model, load_config

    torch.manual_seed(0)
    path = Path("weights.pth").resolve()
    torch.save({"state_dict": build_model(load_config(tiny())).state_dict()}, path)
    return path


def evaluator(config: Path, weights: Path, **arguments: Any) -> Any:
    from sparsevit.openmmlab import detector_evaluator

    return detector_evaluator(config=str(config), checkpoint=str(weights), **arguments)


def test_it_says_what_it_is(tiny: Callable[..., Path], weights: Path) -> None:
    judge = evaluator(tiny(), weights)
    assert isinstance(judge, Described)
    images = judge.scenes()
    said = judge.description()
    assert said["detector"] == "MaskRCNN"
    assert re.fullmatch(rf"\w+\.json, {images} images of \d+ classes", said["data"])
    assert said["channels"].isdigit()


def test_accuracy_under_a_sparsity(tiny: Callable[..., Path], weights: Path) -> None:
    judge = evaluator(tiny(), weights)
    assert isinstance(judge, Identified)
    assert isinstance(judge, Exporter)
    steps: list[int] = []
    found = judge.accuracy(FOUND, images=2, step=lambda advance, note="": steps.append(advance))
    assert steps == [1, 1]
    assert judge.backbone().sparsity == FOUND
    assert found == judge.accuracy(FOUND, images=2)
    assert {"bbox_mAP", "segm_mAP"} <= found.keys()
    assert judge.accuracy(FOUND).keys() == found.keys()


def test_identity_follows_what_accuracies_depend_on(tiny: Callable[..., Path], weights: Path, tmp_path: Path) -> None:
    base = evaluator(tiny(), weights).identity()
    assert evaluator(tiny(), weights).identity() == base

    def changed(more: str, checkpoint: Path = weights) -> set[str]:
        found = evaluator(tiny(more=more), checkpoint).identity()
        assert found.keys() == base.keys()
        return {key for key in base if found[key] != base[key]}

    other = torch.load(weights, weights_only=True)["state_dict"]
    other["rpn_head.rpn_cls.bias"] += 1e-3
    torch.save(other, tmp_path / "other.pth")
    assert changed("", tmp_path / "other.pth") == {"supernet"}
    assert changed("model['test_cfg']['rcnn']['max_per_img'] = 9") == {"testing"}
    assert changed("model['rpn_head']['anchor_generator'] = dict(scales=[6])") == {"testing"}
    assert changed("test_pipeline[1]['transforms'][2]['size_divisor'] = 64") == {"testing"}
    assert changed("digits['images'] = 3") == {"dataset"}
    assert changed("optimizer = dict(lr=7)\nmodel['train_cfg']['rcnn']['sampler']['num'] = 7") == set()
    assert changed("model['backbone']['pruning_ratios'] = 0.5") == set()


def test_boxes_alone(tiny: Callable[..., Path], weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = evaluator(tiny(), weights)
    boxes = evaluator(tiny(), weights, metrics=("bbox_mAP_50", "bbox_mAP"))
    wanted = {key: value for key, value in both.accuracy(FOUND).items() if key.startswith("bbox")}
    asked = evaluator(tiny(), weights, metrics=("bbox_mAP", "segm_mAP"))
    assert asked.accuracy(FOUND) == both.accuracy(FOUND)
    assert asked.identity() == both.identity()
    monkeypatch.setattr("mmdet.models.FCNMaskHead.forward", None)
    assert boxes.accuracy(FOUND) == wanted
    assert boxes.identity() == {**both.identity(), "figures": "boxes alone"}  # what is kept lacks what others ask for


def test_batches_shrink_where_memory_does_not_suffice(
    tiny: Callable[..., Path], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsevit.openmmlab.batched_test import BatchedTest

    fits, tried = 1, []
    detect = BatchedTest.detect

    def scarce(self: BatchedTest, features: Any, metas: Any) -> Any:
        tried.append(len(metas))
        if len(metas) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return detect(self, features, metas)

    judge = evaluator(tiny(), weights, batch=4)
    expected = judge.accuracy(FOUND)
    monkeypatch.setattr(BatchedTest, "detect", scarce)
    assert isinstance(judge, Shrinkable)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            judge.accuracy(FOUND)
        assert judge.smaller_batch()
    assert judge.accuracy(FOUND) == pytest.approx(expected, abs=1e-6)
    assert judge.accuracy(FOUND, images=2) == judge.accuracy(FOUND, images=2)
    assert tried == [4, 2] + [1] * 8
    assert not judge.smaller_batch()


def test_identity_does_not_follow_the_folder(
    tiny: Callable[..., Path], weights: Path, data_folder: Path, tmp_path: Path
) -> None:
    base = evaluator(tiny(), weights).identity()
    shutil.copytree(data_folder, tmp_path / "moved")
    moved = weights.rename(tmp_path / "renamed.pth")
    assert (
        evaluator(tiny(name="copy.py", more=f"digits['folder'] = {str(tmp_path / 'moved')!r}"), moved).identity()
        == base
    )


def test_wrong_files_are_one_line(tiny: Callable[..., Path], weights: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint not found: gone\.pth"):
        evaluator(tiny(), Path("gone.pth"))
    with pytest.raises(UserError, match="another model"):
        evaluator(
            tiny(more="model['backbone']['embed_dims'] = 16\nmodel['neck']['in_channels'] = [16, 32, 64, 128]"), weights
        )


def export(config: Path | str, weights: Path | str, path: Path, *provenance: str) -> Any:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.export import write_finetune_config

    assert write_finetune_config(str(config), str(weights), FOUND, path, provenance) == path
    assert [each.name for each in path.parent.iterdir() if each.name.endswith(".tmp")] == []
    return load_config(path)


def test_an_exported_config_is_ready_to_finetune(tiny: Callable[..., Path], weights: Path, tmp_path: Path) -> None:
    hooks = "custom_hooks = [dict(type='SparsityAdaptation', seed=1), dict(type='NumClassCheckHook')]\n"
    base = tiny(more=hooks + "model['backbone']['pruning_ratios'] = 0.5\n")
    Path("out").mkdir()
    path = evaluator(base, weights).export(FOUND, tmp_path / "out/finetune.py", ["study: x", "trial: 3 of 9"])
    text = path.read_text()
    assert "# study: x\n# trial: 3 of 9\n" in text
    assert "_base_ = '../tiny.py'" in text
    code = f"""
from mmcv import Config
config = Config.fromfile({str(path)!r})
from mmdet.models import build_detector
print(build_detector(config.model).backbone.sparsity)
print([hook.type for hook in config.custom_hooks], list(config.evaluate_sparsities.sparsities))
print(config.load_from, config.evaluate_sparsities.images)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.splitlines() == [str(FOUND), "['NumClassCheckHook'] ['subnet']", f"{weights} 2"], done.stderr


def test_the_base_is_named_so_that_the_tree_can_move(
    tiny: Callable[..., Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny()
    (tmp_path / "elsewhere").mkdir()
    export(base, weights, tmp_path / "inside.py")
    assert "_base_ = 'tiny.py'" in Path("inside.py").read_text()
    monkeypatch.chdir(tmp_path / "elsewhere")
    export(base, weights, Path("outside.py"))
    assert f"_base_ = {str(base)!r}" in Path("outside.py").read_text()


def test_builtin_weights_keep_their_name(tmp_path: Path) -> None:
    import sparsevit.openmmlab  # noqa: F401

    config = export("builtin:digits/supernet.py", "builtin:digits", tmp_path / "finetune.py")
    assert config.load_from == "builtin:digits"
    assert config.runner.max_epochs == 3
    assert config.evaluate_sparsities.sparsities == {"subnet": [list(stage) for stage in FOUND.floats]}


def test_a_base_without_validation_or_hooks(tiny: Callable[..., Path], weights: Path, tmp_path: Path) -> None:
    base = tiny(more="evaluate_sparsities = None\n")
    config = export(base, weights, tmp_path / "finetune.py")
    assert config.evaluate_sparsities is None
    assert config.custom_hooks == []


@given(lines=st.lists(st.text(max_size=30), max_size=3))
def test_provenance_stays_in_its_comment(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("export")
    (folder / "weights.pth").touch()
    base = folder / "base.py"
    base.write_text("model = dict(backbone=dict(type='SparseViT', pruning_ratios=None))\n")
    config = export(base, folder / "weights.pth", folder / "finetune.py", *lines)
    assert set(config._cfg_dict) == {"custom_imports", "model", "load_from", "custom_hooks"}


@pytest.mark.parametrize(
    "line",
    [
        "a\nraise SystemExit",
        "a\rb",
        "a\x0cb\x00c",
        "a\u2028b",
        "\ud800",
        "-*- coding: utf-16 -*-",
        "{{ _base_.x }}",
        "{{ fileDirname }}",
    ],
)
def test_odd_provenance_stays_in_its_comment(line: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    base = tmp_path / "base.py"
    base.write_text("model = dict(backbone=dict(type='SparseViT', pruning_ratios=None))\n")
    config = export(base, tmp_path / "weights.pth", tmp_path / "finetune.py", line, line)
    assert set(config._cfg_dict) == {"custom_imports", "model", "load_from", "custom_hooks"}


def test_a_config_that_cannot_be_written_leaves_nothing(
    tiny: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    base = tiny()
    Path("taken/finetune.py").mkdir(parents=True)
    for path in ("gone/finetune.py", "taken/finetune.py"):
        with pytest.raises(UserError, match=f"cannot write {path}: "):
            export(base, weights, Path(path))
    assert [each.name for each in Path("taken").iterdir()] == ["finetune.py"]
