"""`sparsevit deploy` as a user types it: what it prints, what its file says, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

from sparsevit.cli import app as cli
from sparsevit.model.weights import sha256, weights_path

SUBNET = ("builtin:digits/supernet.py", "builtin:digits")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(("deploy", *words))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_program_with_its_provenance(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("-s", "0.6/0/0.2,0.4,0.5/0", "--size", "64x96", "--batch", "2", "--out", "digits.pt2")
    assert run(*SUBNET, *words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        "digits.pt2: backbone at 0.6/0/0.2,0.4,0.5/0, 2 images of 3x64x96 to maps 32x16x24, 64x8x12, 128x4x6, 256x2x3; "
        f"sha256 {sha256(Path('digits.pt2'))}"
    )
    assert out[1].startswith("largest difference from the backbone, on the CPU: ")
    extra = {"sparsevit.json": ""}
    program = torch.export.load("digits.pt2", extra_files=extra)
    assert [each.shape for each in program.module()(torch.randn(2, 3, 64, 96))][3] == (2, 256, 2, 3)
    found = json.loads(extra["sparsevit.json"])
    assert found["sparsity"] == "0.6/0/0.2,0.4,0.5/0"
    assert (found["size"], found["batch"], found["scope"]) == ("64x96", "2", "backbone")
    assert found["checkpoint_sha256"] == sha256(weights_path("builtin:digits"))
    assert (found["image_mean"], found["image_colours"]) == ("123.675 116.28 103.53", "RGB")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "64", "--out", "digits.pth"), "end it in .onnx or .pt2"),
        (("--size", "large", "--out", "digits.pt2"), "cannot read the image size 'large'"),
        (("--size", "16", "--out", "digits.pt2"), "each side must be 32 or more"),
        (("--size", "64", "--out", "digits.pt2", "--batch", "0"), "--batch '0' is no number of images"),
        (("--size", "64", "--out", "digits.pt2", "--batch", "many"), "write 1 or more, or any"),
        (("--size", "64", "--out", "gone/digits.pt2"), "cannot write to gone: no such file or directory"),
        (("--size", "64", "--out", "digits.pt2", "-s", "0.5,0.3"), "does not fit a backbone with depths"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SUBNET, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(Path.cwd().iterdir()) == []


def test_weights_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SUBNET[0], "gone.pth", "--size", "64", "--out", "digits.pt2") == 2
    assert "checkpoint not found: gone.pth" in capsys.readouterr().err
