"""Configs and checkpoints: every way they may be given, and one line for every way they may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.errors import UserError
from sparsevit.openmmlab.config import (
    build_model,
    config_path,
    load_backbone,
    load_config,
    options_of,
)


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_builtin_configs_have_names() -> None:
    assert config_path("builtin:digits/supernet.py").parts[-3:] == ("configs", "digits", "supernet.py")
    assert load_config("builtin:digits/saa.py").custom_hooks[0].type == "SparsityAdaptation"
    assert "there are: " in refusal(load_config, "builtin:digits/nothing.py")


def test_options_overrule_a_config(tiny: Callable[..., Path]) -> None:
    options = options_of(["runner.max_epochs=7", "data.train.size=[160, 128]", "load_from=a.pth", "work=x=y"])
    assert options == {"runner.max_epochs": 7, "data.train.size": [160, 128], "load_from": "a.pth", "work": "x=y"}
    assert options_of(["a=(672, 672)", "b=None", "c=True", "d=true", "e=1e-5"]) == {
        "a": (672, 672),
        "b": None,
        "c": True,
        "d": True,
        "e": 1e-5,
    }
    config = load_config(tiny(), options)
    assert config.runner.max_epochs == 7
    assert config.runner.type == "EpochBasedRunner"
    assert config.load_from == "a.pth"
    for item in ("runner.max_epochs", "=3", ""):
        assert "write it as key.sub=value" in refusal(options_of, [item])
    assert "cannot set optimizer.lr.x=1 in the config" in refusal(load_config, tiny(), {"optimizer.lr.x": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("_base_ = 'gone.py'", "FileNotFoundError"),
        ("custom_imports = dict(imports=['nowhere_to_be_found'])", "nowhere_to_be_found"),
    ],
)
def test_a_config_that_cannot_be_executed(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    line = refusal(load_config, path)
    assert line.startswith(f"cannot read the config {path}: ")
    assert said in line
    assert capsys.readouterr() == ("", "")
    assert refusal(load_config, tmp_path / "gone.py") == f"config not found: {tmp_path / 'gone.py'}"


def test_a_model_that_is_not_sparsevit(tiny: Callable[..., Path]) -> None:
    for options in (
        {"model.backbone.type": "ResNet"},
        {"model.backbone": "swin"},
        {"model.backbone": None},
        {"model": None},
    ):
        assert "must be 'SparseViT'" in refusal(build_model, load_config(tiny(), options))


def test_a_model_that_cannot_be_built(tiny: Callable[..., Path]) -> None:
    text = refusal(build_model, load_config(tiny(), {"model.backbone.heads": 3}))
    assert "cannot build the model" in text
    assert "'heads'" in text
    text = refusal(
        build_model, load_config(tiny(), {"model.backbone.pruning_ratios": [[0.5], [0], [0.3, 0.2, 0.1], [0]]})
    )
    assert "decrease" in text


def test_the_backbone_alone_has_the_detectors_weights(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny()
    torch.manual_seed(3)
    model = build_model(load_config(config))
    torch.save(model.state_dict(), tmp_path / "all.pth")
    backbone = load_backbone(config, tmp_path / "all.pth")
    assert not backbone.training
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[key])
