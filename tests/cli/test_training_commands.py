"""`data`, `adapt`, `finetune` and `evaluate` as a user types them: what they print and write; mistakes in one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsevit.assets import asset
from sparsevit.cli import app as cli

pytest.importorskip("mmdet")

CONFIG = """
_base_ = {base!r}
model = dict(
    backbone=dict(embed_dims=8, num_heads=(1, 1, 1, 1), pruning_ratios=0.3),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=40, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=40, max_per_img=20), rcnn=dict(max_per_img=10)),
)
data = dict(
    samples_per_gpu=2,
    train=dict(images=2, size=(128, 128), crowd=(1, 3, 0.4, 1.0)),
    val=dict(images=2, size=(128, 128)),
    test=dict(images=2, size=(128, 128)),
)
runner = dict(max_epochs=1)
evaluate_sparsities = None
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the config of a small detector, its weights, and weights of another one."""
    import torch
    from mmcv.runner import epoch_based_runner
    from safetensors.torch import save_file

    import sparsevit.openmmlab  # noqa: F401  makes mmcv importable
    from sparsevit.openmmlab.config import build_model, load_config

    monkeypatch.chdir(tmp_path)
    # mmcv's runner sleeps two seconds before every epoch, for the sake of worker processes.
    monkeypatch.setattr(epoch_based_runner, "time", SimpleNamespace(sleep=lambda seconds: None))
    Path("tiny.py").write_text(CONFIG.format(base=str(asset("configs", "digits/mask_rcnn.py"))))
    torch.manual_seed(0)
    save_file(build_model(load_config("tiny.py")).state_dict(), "tiny.safetensors")
    save_file({"other.weight": torch.ones(1)}, "other.safetensors")
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def files() -> list[Path]:
    return sorted(path for path in Path().rglob("*") if path.is_file())


def test_data_digits_writes_a_coco_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("data", "digits", "--out", "[d]", "--images", "2", "--size", "128x160", "--split", "train")
    assert run(*words) == 0
    out = capsys.readouterr().out
    assert "drawing train images: 2/2" in out
    assert out.endswith("images and annotations: [d]/train.json\n")
    coco = json.loads(Path("[d]/train.json").read_text())
    assert [(each["height"], each["width"]) for each in coco["images"]] == [(128, 160)] * 2
    assert len(list(Path("[d]/train").glob("*.jpg"))) == 2
    assert run(*words) == 0
    assert "drawing" not in capsys.readouterr().out


def test_adapt_trains_a_supernet_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("adapt", "tiny.py", "tiny.safetensors", "--device", "cpu", "--cfg-options", "data.train.images=4")
    assert run(*words, "--seed", "3") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "supernet: work_dirs/tiny/epoch_1.pth"
    assert "sparsity-aware adaptation: 2/2" in captured.out
    assert captured.err == ""
    assert "type='SparsityAdaptation', seed=3" in Path("work_dirs/tiny/config.py").read_text()
    assert [path.name for path in files() if path.parts[0] == "work_dirs"] == [
        "config.py",
        "epoch_1.pth",
        "training.log",
        "training.log.json",
    ]
    assert run(*words) == 0
    assert "resuming from work_dirs/tiny/epoch_1.pth" in capsys.readouterr().out


def test_finetune_says_how_accurate_it_is_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--work-dir", "out", "--device", "cpu", "--images", "1", "--cfg-options", "load_from=tiny.safetensors")
    assert run("finetune", "tiny.py", *words) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if re.match(r"before|after|checkpoint|finetuning", line)]
    assert re.fullmatch(r"before: bbox mAP 0\.\d{4}, segm mAP 0\.\d{4}", lines[0])
    assert lines[1].startswith("finetuning: 1/1")
    assert re.fullmatch(r"after: bbox mAP 0\.\d{4}, segm mAP 0\.\d{4}", lines[2])
    assert lines[3] == "checkpoint: out/epoch_1.pth"
    assert captured.err == ""
    assert Path("out/epoch_1.pth").is_file()


def test_evaluate_prints_a_row_for_each_sparsity(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", "tiny.py", "tiny.safetensors", "--device", "cpu", "--images", "1")
    assert run(*words, "-s", "dense", "-s", "0.3/0/0.1,0.2,0.2/0", "-s", "0.6") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    header = next(i for i, row in enumerate(rows) if row[:1] == ["sparsity"])
    assert rows[header][1:4] == ["bbox", "mAP", "bbox"]
    table = rows[header + 1 :]
    assert [row[0] for row in table] == ["dense", "0.3/0/0.1,0.2,0.2/0", "0.6/0.6/0.6,0.6,0.6/0.6"]
    assert all(len(row) == 13 for row in table)
    assert all(re.fullmatch(r"[01]\.\d{4}", value) for row in table for value in row[1:])


def test_evaluate_as_json_by_default_at_the_configs_sparsity(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "tiny.py", "tiny.safetensors", "--device", "cpu", "--images", "1", "--json") == 0
    captured = capsys.readouterr()
    assert "evaluating 0.3/0.3/0.3,0.3,0.3/0.3: 1/1" in captured.err
    (figures,) = json.loads(captured.out)
    assert figures["sparsity"] == "0.3/0.3/0.3,0.3,0.3/0.3"
    assert 0 <= figures["bbox_mAP"] <= 1
    assert "segm_mAP_50" in figures


EVALUATE = ("evaluate", "tiny.py", "tiny.safetensors", "--device", "cpu")
FINETUNE = ("finetune", "tiny.py", "--device", "cpu")
ADAPT = ("adapt", "tiny.py", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*EVALUATE, "-s", "1.2"), "1.2"),
        ((*EVALUATE, "-s", "0/0/0.5,0.2,0.6/0"), "decrease inside stage 3"),
        ((*EVALUATE, "-s", "0/0"), "does not fit a backbone with depths (2, 2, 6, 2)"),
        ((*EVALUATE, "--images", "0"), "--images"),
        (("evaluate", "tiny.py", "other.safetensors"), "other.safetensors is a checkpoint of another model"),
        (("evaluate", "tiny.py", "gone.pth"), "checkpoint not found: gone.pth"),
        (("evaluate", "tiny.py", "tiny.py"), "tiny.py is not a checkpoint"),
        (("evaluate", "gone.py", "tiny.safetensors"), "config not found: gone.py"),
        (("evaluate", "builtin:gone.py", "tiny.safetensors"), "there are: "),
        ((*EVALUATE[:-1], "cuda:99"), "device 'cuda:99' is not there"),
        ((*EVALUATE, "--cfg-options", "data.test.type=CocoDataset"), "cannot read the data set"),
        ((*EVALUATE, "--cfg-options", "model.backbone.embed_dims"), "write it as key.sub=value"),
        ((*EVALUATE, "--cfg-options", "optimizer.lr.x=1"), "cannot set optimizer.lr.x=1"),
        ((*EVALUATE, "--cfg-options", "model.backbone.type=ResNet"), "must be 'SparseViT'"),
        ((*FINETUNE, "--cfg-options", "load_from=other.safetensors"), "checkpoint of another model"),
        ((*FINETUNE, "--work-dir", "/proc/x"), "cannot write to /proc"),
        ((*FINETUNE, "--work-dir", "tiny.py/x"), "it is not a folder"),
        ((*ADAPT, "--work-dir", "/proc/x"), "choose another folder with --work-dir"),
        ((*ADAPT, "--cfg-options", "optimizer=null"), "no table 'optimizer'"),
        ((*ADAPT, "--cfg-options", "optimizer.type=Adamm"), "Adamm"),
        ((*ADAPT, "--cfg-options", "lr_config.policy=Nothing"), "Nothing"),
        (("adapt", "tiny.py", "other.safetensors"), "checkpoint of another model"),
        (("adapt", "tiny.py", "gone.pth"), "checkpoint not found: gone.pth"),
        (("data", "digits", "--split", "test"), "no split 'test'"),
        (("data", "digits", "--size", "big"), "cannot read the image size 'big'"),
        (("data", "digits", "--size", "40"), "too small for the digits"),
        (("data", "digits", "--out", "tiny.py"), "cannot write the data set to tiny.py"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_one_line_and_leave_nothing(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    before = files()
    capfd.readouterr()
    assert run(*words) == 2
    *listed, line = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    # Before that line stands but the list of keys that do not fit.
    assert all(detail.startswith(("  missing: ", "  unknown: ")) for detail in listed)
    assert bool(listed) == ("another model" in line)
    assert [path for path in files() if path.parts[0] != "data"] == before
    assert not list(Path().rglob("epoch_*"))
    assert not list(Path().rglob("*.tmp*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
@pytest.mark.parametrize("words", [FINETUNE, ADAPT], ids=["finetune", "adapt"])
def test_a_read_only_work_folder(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    Path("locked").mkdir(mode=0o555)
    assert run(*words, "--work-dir", "locked/out") == 2
    assert capsys.readouterr().err.startswith("error: cannot write to ")


def test_a_config_that_fails_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("raise RuntimeError('first\\nsecond')\n")
    assert run("evaluate", "broken.py", "tiny.safetensors") == 2
    assert capfd.readouterr().err == "error: cannot read the config broken.py: RuntimeError: first\n"
