"""Configs and checkpoints: every way they may be given, and one line for every way they may be wrong."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.errors import UserError
from sparsevit.model.weights import read_weights, weights_path
from sparsevit.openmmlab.config import (
    build_model,
    config_path,
    load_backbone,
    load_config,
    options_of,
)
from sparsevit.openmmlab.weights import load_weights


class Counts(nn.Module):
    """A model with a weight and a table that can be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("relative_position_index", torch.arange(4))


WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "meta": {"epoch": 1, "CLASSES": ["a"]}},
        {"model": WEIGHTS},
        {"state_dict": {f"module.{key}": value for key, value in WEIGHTS.items()}},
        {**WEIGHTS, "relative_position_index": torch.zeros(9)},
    ],
    ids=["plain", "mmcv", "swin", "parallel", "with table"],
)
def test_every_kind_of_checkpoint_is_read(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "old.pth"):
        model = Counts()
        load_weights(model, tmp_path / name)
        assert torch.equal(model.layer.weight, WEIGHTS["layer.weight"])
        assert torch.equal(model.relative_position_index, torch.arange(4))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_of_half_precision_are_read(tmp_path: Path, prefix: str) -> None:
    save_file({prefix + key: value.half() for key, value in WEIGHTS.items()}, tmp_path / "a.safetensors")
    model = Counts()
    load_weights(model, str(tmp_path / "a.safetensors"))
    assert torch.equal(model.layer.weight, WEIGHTS["layer.weight"])


def test_a_checkpoint_of_another_model_names_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.ones(3, 3), **{f"extra{i}": torch.ones(1) for i in range(5)}}, path)
    text = refusal(load_weights, Counts(), path)
    assert text.startswith(f"{path} is a checkpoint of another model")
    assert "1 missing (layer.bias)" in text
    assert "5 unknown (extra0, extra1, extra2, …)" in text
    assert "1 of another shape (layer.weight)" in text


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": WEIGHTS, "evil": Attack()}, "new.pth")
    Path("bare.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    assert "reading that could run code" in refusal(read_weights, Path("new.pth"))
    refusal(read_weights, Path("bare.pth"))
    assert not Path("attacked").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    for name, content in (("text.pth", b"hello"), ("empty.pth", b""), ("cut.safetensors", b"\x08\0\0\0\0\0\0\0{")):
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "numbers.pth")
    assert "text.pth is not a checkpoint" in refusal(read_weights, tmp_path / "text.pth")
    assert "empty.pth is not a checkpoint" in refusal(read_weights, tmp_path / "empty.pth")
    assert "cannot read the checkpoint" in refusal(read_weights, tmp_path / "cut.safetensors")
    for name in ("list.pth", "numbers.pth"):
        assert "holds no state dict" in refusal(read_weights, tmp_path / name)
    whole = (tmp_path / "list.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    refusal(read_weights, tmp_path / "half.pth")
    assert refusal(load_weights, Counts(), "gone.pth") == "checkpoint not found: gone.pth"
    assert refusal(weights_path, "builtin:nothing") == "checkpoint not found: builtin:nothing"


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
