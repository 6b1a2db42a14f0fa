"""The whole making of a supernet, small: dense, both stages of adaptation, packing, and the model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")


@pytest.fixture
def stages(tiny: Callable[..., Path]) -> Path:
    """A folder with the small detector's config of every stage: the shipped ones, cut down."""
    short = "runner = dict(max_epochs=1)\ndata['train'] = dict(images=4, size=size, crowd=(1, 3, 0.4, 1.0))\n"
    quick = short + "evaluate_sparsities = dict(_delete_=True, images=1, sparsities={'dense': None})\n"
    for stage in ("dense", "saa", "saa_high", "supernet"):
        tiny(name=f"{stage}.py", base=f"{stage}.py", more=quick)
    return Path.cwd()


def make(stages: Path, *words: str) -> None:
    from sparsevit.openmmlab.supernet import main

    main(["--work-dir", "out", "--config-dir", str(stages), "--device", "cpu", "--random", "3", *words])


def load(path: Path | str) -> Any:
    from sparsevit.openmmlab.config import build_model, load_config

    return build_model(load_config("supernet.py"), path).eval()


def test_the_whole_path_and_again(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    from sparsevit.model.weights import read_weights

    make(stages)
    card = json.loads(Path("out/card.json").read_text())
    assert card["images"] == 4
    names = ["dense", "uniform 30 %", "uniform 60 %", "random 0", "random 1", "random 2"]
    assert list(card) == [*names, "random mean", "images"]
    assert card["uniform 60 %"]["sparsity"] == "0.6/0.6/0.6,0.6,0.6/0.6"
    assert len({card[name]["sparsity"] for name in names}) == 6
    assert card["random mean"].keys() == card["dense"].keys() - {"sparsity"}

    # Each stage starts where the one before it ended.
    before = read_weights(Path("out/dense.safetensors"))
    adapted = Path("out/saa/config.py").read_text()
    assert "load_from = 'out/dense.safetensors'" in adapted
    assert "load_from = 'out/saa.safetensors'" in Path("out/saa_high/config.py").read_text()
    after = read_weights(Path("out/saa_high.safetensors"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)

    # The supernet lies between the last two stages.
    first, supernet = read_weights(Path("out/saa.safetensors")), read_weights(Path("out/supernet.safetensors"))
    for key, value in supernet.items():
        between = torch.lerp(first[key].float(), after[key].float(), 0.3)
        torch.testing.assert_close(value.float(), between, rtol=1e-3, atol=1e-6)

    with safe_open("out/saa_high.safetensors", "pt") as packed:
        keys = list(packed.keys())
        assert packed.metadata() == {"config": "digits/supernet.py"}
        assert {packed.get_tensor(key).dtype for key in keys} == {torch.float16}
    assert not [key for key in keys if key.endswith("relative_position_index")]
    assert sorted(path.name for path in Path("out").iterdir() if path.suffix == ".tmp") == []

    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        whole = load("out/saa_high/epoch_1.pth").extract_feat(image)
        packed_features = load("out/saa_high.safetensors").extract_feat(image)
    for theirs, ours in zip(whole, packed_features, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-2 * float(theirs.abs().max()), rtol=0)

    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("epoch_1.pth")}
    assert len(times) == 3
    capsys.readouterr()
    make(stages, "--stages", "dense", "saa", "saa_high")
    assert {path: path.stat().st_mtime_ns for path in times} == times, "nothing is trained again"
    assert capsys.readouterr().out.count("resuming from out/") == 3


def test_the_card_judges_each_sparsity(stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsevit.openmmlab.config import build_model, load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation
    from sparsevit.openmmlab.supernet import judge

    def metrics(self: Any, model: Any, **_: Any) -> dict[str, float]:
        return {"bbox_mAP": float(sum(model.backbone.sparsity.flat))}

    monkeypatch.setattr(DetectorEvaluation, "metrics", metrics)
    config = load_config("supernet.py")
    torch.save(build_model(config).state_dict(), "weights.pth")
    figures = judge(config, Path("weights.pth"), device="cpu", count=4, seed=1)
    assert [figures[name]["bbox_mAP"] for name in ("dense", "uniform 30 %", "uniform 60 %")] == pytest.approx(
        [0, 1.8, 3.6]
    )
    drawn = [figures[f"random {i}"] for i in range(4)]
    ratios = [[float(ratio) for ratio in each["sparsity"].replace("/", ",").split(",")] for each in drawn]
    assert [each["bbox_mAP"] for each in drawn] == pytest.approx([sum(each) for each in ratios])
    assert figures["random mean"]["bbox_mAP"] == pytest.approx(sum(map(sum, ratios)) / 4)
    assert judge(config, Path("weights.pth"), device="cpu", count=4, seed=1) == figures
    assert judge(config, Path("weights.pth"), device="cpu", count=4, seed=2) != figures


def test_one_stage_from_given_weights(stages: Path, tmp_path: Path) -> None:
    from sparsevit.model.weights import read_weights
    from sparsevit.openmmlab.config import build_model, load_config

    torch.manual_seed(7)
    torch.save(build_model(load_config("dense.py")).state_dict(), "start.pth")
    still = ["--cfg-options", "optimizer.lr=0", "optimizer.weight_decay=0"]
    make(stages, "--stages", "saa", "--from-weights", "start.pth", *still)
    start, end = read_weights(Path("start.pth")), read_weights(Path("out/saa.safetensors"))
    for key in ("backbone.patch_embed.projection.weight", "roi_head.bbox_head.fc_cls.weight"):
        torch.testing.assert_close(end[key], start[key].half())


def test_a_card_needs_weights(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        make(stages, "--stages", "card")
    assert stop.value.code == 2
    assert "no weights to judge" in capsys.readouterr().err
