"""Configs of the paper and of mmdet's Swin work as they stand, and say the same as this package's own form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.errors import UserError
from sparsevit.openmmlab.config import build_model, load_backbone, load_config, read_config
from sparsevit.openmmlab.paper_forms import adapting, as_sparsevit, own_sparsity

CFG1 = [[0.3, 0.3], [0.0, 0.0], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0.0, 0.0]]
SWIN = {
    "type": "SwinTransformer",
    "embed_dims": 8,
    "depths": [2, 2, 6, 2],
    "num_heads": [1, 1, 1, 1],
    "window_size": 7,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "qk_scale": None,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.2,
    "patch_norm": True,
    "out_indices": (0, 1, 2, 3),
    "with_cp": False,
    "convert_weights": True,
    "init_cfg": {"type": "Pretrained", "checkpoint": "https://nowhere.invalid/swin_tiny.pth"},
}
SAID = "note: the config's backbone SwinTransformer is read as SparseViT with pad_before_norm=False"


def write(name: str, **content: Any) -> Path:
    path = Path(name)
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in content.items()))
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(**content: Any) -> str:
    with pytest.raises(UserError) as error:
        load_config(write("wrong.py", **content))
    assert "\n" not in str(error.value)
    return str(error.value)


def backbone(**more: Any) -> dict[str, Any]:
    return {"backbone": {"type": "SparseViT", **more}}


def test_ratios_of_the_papers_configs(capsys: pytest.CaptureFixture[str]) -> None:
    found = load_config(write("paper.py", model=backbone(depths=[2, 2, 6, 2]), pruning_ratios=CFG1))
    assert str(own_sparsity(found)) == "0.3/0/0.1,0.2,0.2/0"
    assert "pruning_ratios" not in found
    assert found.custom_imports.imports == ["sparsevit.openmmlab"]
    assert not adapting(found)
    assert capsys.readouterr() == ("", "")


def test_a_form_is_stable() -> None:
    found = load_config(write("paper.py", model={"backbone": SWIN}, pruning_ratios=CFG1, random_sample=True))
    text = found.pretty_text
    assert as_sparsevit(found) == []
    assert found.pretty_text == text
    found.dump("dumped.py")
    assert load_config("dumped.py")._cfg_dict == found._cfg_dict


@pytest.mark.parametrize(
    ("above", "inside", "expected"),
    [
        (CFG1, None, "0.3/0/0.1,0.2,0.2/0"),
        (None, CFG1, "0.3/0/0.1,0.2,0.2/0"),
        (CFG1, [[0.3], [0], [0.1, 0.2, 0.2], [0]], "0.3/0/0.1,0.2,0.2/0"),
        ("0.3/0/0.1,0.2,0.2/0", CFG1, "0.3/0/0.1,0.2,0.2/0"),
        (None, None, "0/0/0,0,0/0"),
    ],
)
def test_ratios_may_stand_in_two_places_if_they_agree(above: Any, inside: Any, expected: str) -> None:
    found = load_config(write("both.py", model=backbone(pruning_ratios=inside), pruning_ratios=above))
    assert str(own_sparsity(found)) == expected


def test_ratios_that_contradict_or_do_not_fit() -> None:
    assert refusal(model=backbone(pruning_ratios=0.5), pruning_ratios=CFG1) == (
        "the config has two pruning_ratios: 0.3/0/0.1,0.2,0.2/0 at the top level, and "
        "0.5/0.5/0.5,0.5,0.5/0.5 in model.backbone; leave one of them out"
    )
    unequal = [[0.3, 0.3], [0, 0], [0.1, 0.2, 0.2, 0.2, 0.2, 0.2], [0, 0]]
    text = refusal(model=backbone(), pruning_ratios=unequal)
    assert "the config's pruning_ratios: the two blocks of a layer share one ratio, but stage 3 has 0.1 and 0.2" in text
    assert "does not fit a backbone with depths (2, 2, 18, 2)" in refusal(
        model=backbone(depths=[2, 2, 18, 2]), pruning_ratios=CFG1
    )
    found = load_config(write("x.py", random_sample="yes", model=backbone()))
    with pytest.raises(UserError, match="random_sample is 'yes' in the config: write True or False"):
        adapting(found)


def test_unequal_blocks_inside_the_backbone_are_refused_too(tiny: Callable[..., Path]) -> None:
    unequal = [[0.3, 0.3], [0, 0], [0.1, 0.2, 0.2, 0.2, 0.2, 0.2], [0, 0]]
    with pytest.raises(UserError, match=r"stage 3 has 0\.1 and 0\.2") as error:
        build_model(load_config(tiny(more=f"model['backbone']['pruning_ratios'] = {unequal}\n")))
    assert "\n" not in str(error.value)


def test_a_stock_swin_is_read_as_sparsevit(capsys: pytest.CaptureFixture[str]) -> None:
    found = load_config(write("swin.py", model={"backbone": SWIN}))
    out, err = capsys.readouterr()
    assert out == "", "the standard output is for results"
    assert err.startswith(SAID)
    assert err.count("\n") == 1
    assert found.model.backbone.type == "SparseViT"
    assert found.model.backbone.pad_before_norm is False
    assert read_config("swin.py").model.backbone.type == "SwinTransformer"


def test_names_of_swins_own_repository() -> None:
    old = {"type": "SwinTransformer", "embed_dim": 96, "ape": True, "use_checkpoint": False}
    assert load_config(write("swin.py", model={"backbone": old})).model.backbone.to_dict() == {
        "type": "SparseViT",
        "pad_before_norm": False,
        "embed_dims": 96,
        "use_abs_pos_embed": True,
        "with_cp": False,
    }


def test_other_imports_stay() -> None:
    found = load_config(
        write("own.py", model=backbone(), custom_imports={"imports": "json", "allow_failed_imports": 1})
    )
    assert found.custom_imports == {"imports": ["sparsevit.openmmlab", "json"], "allow_failed_imports": 1}


def test_other_backbones_are_left_alone() -> None:
    for model in (backbone(type="ResNet"), {"backbone": None}, None):
        found = load_config(write("other.py", model=model, pruning_ratios=CFG1))
        assert found.pruning_ratios == CFG1
        assert "custom_imports" not in found


@pytest.mark.parametrize("size", [(112, 112), (100, 150)])
def test_a_switched_swin_computes_what_swin_does(tiny: Callable[..., Path], size: tuple[int, int]) -> None:
    from mmdet.models import build_backbone

    stock = {key: value for key, value in SWIN.items() if key != "init_cfg"}
    swin = build_backbone(dict(stock))
    swin.eval()  # returns nothing
    more = f"model['backbone'] = dict(_delete_=True, **{SWIN!r})\n"
    config = tiny(more=more)
    torch.save({f"backbone.{key}": value for key, value in swin.state_dict().items()}, "swin.pth")
    switched = load_backbone(config)  # random, though the config names weights that are not there
    assert switched.sparsity.is_dense
    switched = load_backbone(config, "swin.pth")
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        for ours, theirs in zip(switched(image), swin(image), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_an_exported_config_of_a_stock_one_holds_for_mmdets_own_tools(tiny: Callable[..., Path]) -> None:
    from mmcv import Config

    from sparsevit.openmmlab.export import write_finetune_config
    from sparsevit.sparsity import Sparsity

    more = (
        f"model['backbone'] = dict(_delete_=True, **{SWIN!r})\n"
        "custom_imports = dict(imports=['json'])\n"
        f"pruning_ratios = {CFG1}\nrandom_sample = True\n"
    )
    base, found = tiny(more=more), Sparsity.parse("0.5/0/0.1,0.2,0.2/0")
    Path("weights.pth").touch()
    path = write_finetune_config(str(base), "weights.pth", found, Path("finetune.py"), [])
    plain = Config.fromfile(str(path))
    assert plain.model.backbone.type == "SparseViT"
    assert plain.model.backbone.pad_before_norm is False
    assert plain.model.backbone.pruning_ratios == [list(stage) for stage in found.floats]
    assert plain.custom_imports.imports == ["sparsevit.openmmlab", "json"]
    read = load_config(path)
    assert own_sparsity(read) == found
    assert not adapting(read)


def test_every_command_takes_a_stock_swin_config(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from sparsevit.cli.app import main

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(words)
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        assert captured.err.count(SAID) == 1
        return captured.out

    more = f"model['backbone'] = dict(_delete_=True, **{SWIN!r})\n"
    more += "evaluate_sparsities = None\nrunner = dict(max_epochs=1)\n"
    path = str(tiny(more=more))
    settings = load_config(path, {"model.backbone.init_cfg": None})
    torch.save(build_model(settings).state_dict(), "dense.pth")
    capsys.readouterr()
    assert "supernet: work/epoch_1.pth" in run("adapt", path, "dense.pth", "--work-dir", "work", "--device", "cpu")
    words = ("evaluate", path, "work/epoch_1.pth", "-s", "0.6", "--images", "1", "--device", "cpu", "--json")
    (judged,) = json.loads(run(*words))
    assert judged["sparsity"] == "0.6/0.6/0.6,0.6,0.6/0.6"
    small = ("--size", "112", "--seconds", "0.01", "--device", "cpu", "--threads", "1", "--json")
    assert "0.5/0.5/0.5,0.5,0.5/0.5" in run("measure", path, "-s", "0.5", *small)
