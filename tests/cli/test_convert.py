"""`sparsevit convert` as a user types it: what it prints and writes, and one line for every mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevit.cli import app as cli
from sparsevit.model import SparseSwin
from sparsevit.model.weights import FORMATS, as_format, key_format, read_weights, sha256, window_of, write_weights


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_weights(weights(), Path("swin.pth"))
    Path("before").mkdir()


def weights(prefix: str = "backbone.") -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = SparseSwin(embed_dims=8, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1), window_size=4)
    return {prefix + key: value for key, value in model.state_dict().items()} | {"neck.weight": torch.ones(2)}


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(("convert", *words))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize("to", FORMATS)
def test_there_and_back_through_files(to: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("swin.pth", f"there.{suffix}", "--to", to) == 0
    there = read_weights(Path(f"there.{suffix}"))
    assert key_format(there) == to
    assert same(there, as_format(weights(), to))  # type: ignore[arg-type]
    tensors = {"mmdet": 68, "swin": 68, "timm": 64}[to]
    assert capsys.readouterr().out == (
        "swin.pth: 68 tensors, detector, mmdet keys, window 4\n"
        f"there.{suffix}: {tensors} tensors, detector, {to} keys, window 4, sha256 {sha256(Path(f'there.{suffix}'))}\n"
    )
    assert run(f"there.{suffix}", "back.safetensors", "--to", "mmdet") == 0
    assert same(read_weights(Path("back.safetensors")), weights())


def test_another_window_and_the_backbone_alone() -> None:
    assert run("swin.pth", "wide.safetensors", "--window", "7", "--backbone") == 0
    wide = read_weights(Path("wide.safetensors"))
    assert window_of(wide) == 7
    model = SparseSwin(embed_dims=8, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1), window_size=7)
    model.load_state_dict(wide)  # strict: with the indices of that window, and without the neck
    assert run("wide.safetensors", "same.pth", "--window", "7") == 0
    assert same(read_weights(Path("same.pth")), wide)


def test_any_checkpoint_passes_without_its_wrapping_where_nothing_is_asked() -> None:
    torch.save({"state_dict": {"module.fc.weight": torch.ones(2)}, "optimizer": {}}, "other.pth")
    assert run("other.pth", "bare.safetensors") == 0
    assert read_weights(Path("bare.safetensors")).keys() == {"fc.weight"}


def test_the_supernet_that_comes_with_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("builtin:digits", "digits.pth", "--to", "timm", "--backbone") == 0
    assert "timm keys" in capsys.readouterr().out.splitlines()[-1]


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_trust_is_said_with_the_files_hash(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": weights(), "extra": Attack()}, "old.pth")
    assert run("old.pth", "new.safetensors") == 2
    line = capsys.readouterr().err
    assert line.endswith("take the weights out once: sparsevit convert old.pth old.safetensors --trust-checkpoint\n")
    assert not Path("executed").exists()
    assert not Path("new.safetensors").exists()
    assert run("old.pth", "new.safetensors", "--trust-checkpoint") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"trusting old.pth, sha256 {sha256(Path('old.pth'))}"
    assert Path("executed").is_dir()
    assert same(read_weights(Path("new.safetensors")), weights())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gone.pth", "a.pth"), "checkpoint not found: gone.pth"),
        (("https://example.org/a.pth", "a.pth"), "download it"),
        (("before", "a.pth"), "checkpoint before is a folder"),
        (("page.pth", "a.pth"), "page.pth is a web page"),
        (("cut.pth", "a.pth"), "cut.pth is cut short or damaged"),
        (
            ("resnet.pth", "a.pth", "--to", "mmdet"),
            "resnet.pth: no keys of a Swin among 1, such as conv1.weight; known",
        ),
        (("resnet.pth", "a.pth", "--window", "7"), "resnet.pth: no keys of a Swin"),
        (("resnet.pth", "a.pth", "--backbone"), "resnet.pth: no key begins with 'backbone.'"),
        (("swin.pth", "a.pth", "--to", "paddle"), "no key format 'paddle'; there are: mmdet, swin, timm"),
        (("swin.pth", "a.onnx"), "cannot tell what to write from the name a.onnx"),
        (("swin.pth", "gone/a.pth"), "cannot write gone/a.pth"),
        (("swin.pth", "swin.pth"), "swin.pth is the file to read"),
        (("swin.pth", "a.pth", "--window", "1"), "--window"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("page.pth").write_text("<html>moved</html>")
    Path("cut.pth").write_bytes(Path("swin.pth").read_bytes()[:3000])
    torch.save({"conv1.weight": torch.ones(1)}, "resnet.pth")
    before = sorted(os.listdir())
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(os.listdir()) == before
