"""Files of weights: every kind is read, nothing in them is executed, and one line for whatever is no checkpoint."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparsevit.errors import UserError
from sparsevit.model.weights import read_weights, sha256, weights_path, write_weights

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}
OTHERS = {key: value + 1 for key, value in WEIGHTS.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(value, WEIGHTS[key]) for key, value in found.items())


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        OrderedDict(WEIGHTS),
        {"state_dict": WEIGHTS, "meta": {"epoch": 1, "CLASSES": ("a",)}, "optimizer": {"state": {}}},
        {"model": WEIGHTS, "epoch": 3},
        {"model": {"state_dict": WEIGHTS}},
        {"state_dict": {f"module.{key}": value for key, value in WEIGHTS.items()}},
        {"state_dict": {f"module._orig_mod.{key}": value for key, value in WEIGHTS.items()}},
        {"state_dict": OTHERS, "state_dict_ema": WEIGHTS},
        {"model": OTHERS, "ema": WEIGHTS, "updates": 7},
        {"model": OTHERS, "model_ema": {"module": WEIGHTS}},
        {"state_dict": WEIGHTS, "ema": {"decay": 0.999}},
        {"state_dict": {**WEIGHTS, **{"ema_" + key.replace(".", "_"): value for key, value in OTHERS.items()}}},
    ],
    ids=[
        "plain",
        "ordered",
        "mmcv",
        "swin",
        "nested",
        "parallel",
        "compiled",
        "timm",
        "ema",
        "model ema",
        "no ema",
        "mmdet ema",
    ],
)
def test_whatever_weights_are_wrapped_in(content: Any) -> None:
    torch.save(content, "new.pth")
    torch.save(content, "old.bin", _use_new_zipfile_serialization=False)
    assert same(read_weights(Path("new.pth")))
    assert same(read_weights(Path("old.bin")))


def test_safetensors_are_known_by_name_or_content() -> None:
    save_file({f"module.{key}": value for key, value in WEIGHTS.items()}, "a.safetensors")
    os.link("a.safetensors", "renamed.pth")
    assert same(read_weights(Path("a.safetensors")))
    assert same(read_weights(Path("renamed.pth")))


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numpys_numbers_are_no_code(module: str) -> None:
    score = {"best_score": np.float64(0.4), "epoch": np.int64(3)}
    torch.save({"state_dict": WEIGHTS, "meta": {"hook_msgs": score}}, "now.pth")
    with zipfile.ZipFile("now.pth") as source, zipfile.ZipFile("a.pth", "w") as target:
        for name in source.namelist():  # numpy called its module otherwise before 2.0
            content = source.read(name)
            target.writestr(name, content.replace(b"numpy._core.multiarray", module.encode()))
    assert same(read_weights(Path("a.pth")))


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


class Settings:
    """What some training programs keep beside the weights: harmless here, but its class would have to be imported."""


def test_more_than_weights_is_refused_with_the_way_to_trust_it() -> None:
    torch.save({"state_dict": WEIGHTS, "evil": Attack()}, "an attack.pth")
    Path("bare.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    text = refusal(read_weights, Path("an attack.pth"))
    assert text == (
        "an attack.pth holds more than weights (posix.mkdir), and reading that could run code; if you trust where it "
        "comes from, take the weights out once: sparsevit convert 'an attack.pth' 'an attack.safetensors' "
        "--trust-checkpoint"
    )
    refusal(read_weights, Path("bare.pth"))
    assert not Path("attacked").exists()


def test_a_trusted_file_is_executed() -> None:
    torch.save({"state_dict": WEIGHTS, "config": Settings()}, "settings.pth")
    assert "Settings)" in refusal(read_weights, Path("settings.pth"))
    assert same(read_weights(Path("settings.pth"), trust=True))
    torch.save({"state_dict": WEIGHTS, "evil": Attack()}, "attack.pth")
    read_weights(Path("attack.pth"), trust=True)
    assert Path("attacked").is_dir()


def test_a_trusted_file_may_hold_the_model_itself() -> None:
    layer = nn.Linear(3, 2)
    torch.save({"model": layer}, "model.pth")
    assert torch.equal(read_weights(Path("model.pth"), trust=True)["weight"], layer.weight)


def test_a_trusted_file_of_a_program_that_is_not_here() -> None:
    torch.save({"state_dict": WEIGHTS, "config": Settings()}, "a.pth")
    with zipfile.ZipFile("a.pth") as source, zipfile.ZipFile("b.pth", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(__name__.encode(), b"x" * len(__name__)))
    text = refusal(read_weights, Path("b.pth"), trust=True)
    assert text == f"b.pth needs the Python module {'x' * len(__name__)!r} to be read: install it"


PAGE = b"<!DOCTYPE html><html><title>404</title></html>"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello", "is not a checkpoint: neither safetensors nor"),
        (b"", "is not a checkpoint"),
        (PAGE, "is a web page, not a checkpoint: download the file itself"),
        (b"\n  <html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "is a pointer of Git LFS"),
        (b"\x80\x02}q\x00X\x05", "cannot read the checkpoint"),
        (b"\x20\0\0\0\0\0\0\0{", "cannot read the checkpoint"),
        (b"PK\x03\x04 and no more", "is cut short or damaged: download or copy it again"),
    ],
    ids=["text", "empty", "page", "short page", "lfs", "pickle", "safetensors", "zip"],
)
def test_files_that_are_no_checkpoints(content: bytes, said: str) -> None:
    Path("a.pth").write_bytes(content)
    text = refusal(read_weights, Path("a.pth"))
    assert "a.pth" in text
    assert said in text


def test_a_file_cut_anywhere_is_refused() -> None:
    torch.save({"state_dict": WEIGHTS}, "a.pth")
    save_file(WEIGHTS, "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        whole = Path(name).read_bytes()
        for share in (0.1, 0.3, 0.5, 0.8, 0.99):
            Path(f"cut.{name}").write_bytes(whole[: int(len(whole) * share)])
            refusal(read_weights, Path(f"cut.{name}"))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 3}}, {}, {"state_dict": {}}, {1: torch.ones(1)}])
def test_files_without_a_state_dict(content: Any) -> None:
    torch.save(content, "a.pth")
    assert refusal(read_weights, Path("a.pth")) == "a.pth holds no state dict"


def test_names_of_checkpoints() -> None:
    assert weights_path("builtin:digits").name == "digits.safetensors"
    assert refusal(weights_path, "builtin:nothing") == "checkpoint not found: builtin:nothing"
    assert refusal(weights_path, "gone.pth") == "checkpoint not found: gone.pth"
    assert refusal(weights_path, ".") == "checkpoint . is a folder: give a file in it"
    said = refusal(weights_path, "https://example.org/swin.pth")
    assert said == (
        "checkpoint https://example.org/swin.pth is a web address: download it and give the file's path in its place"
    )


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
def test_what_is_written_is_read(name: str) -> None:
    shared = torch.arange(12.0).view(3, 4)
    weights = {"turned": shared.T, "part": shared[1:], "half": shared.half(), "count": torch.tensor(3)}
    write_weights(weights, Path(name))
    found = read_weights(Path(name))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in weights.items())
    assert os.listdir() == [name]
    assert sha256(Path(name)) == hashlib.sha256(Path(name).read_bytes()).hexdigest()


def test_torchs_files_are_wrapped_as_programs_expect() -> None:
    write_weights(WEIGHTS, Path("a.pth"))
    assert torch.load("a.pth", weights_only=True).keys() == {"state_dict"}
    write_weights({"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(49, 2)}, Path("b.pth"))
    assert torch.load("b.pth", weights_only=True).keys() == {"model"}


def test_what_cannot_be_written_leaves_nothing() -> None:
    assert "end it in .safetensors, .pth, .pt" in refusal(write_weights, WEIGHTS, Path("a.onnx"))
    for name in ("gone/a.pth", "gone/a.safetensors"):
        assert refusal(write_weights, WEIGHTS, Path(name)).startswith(f"cannot write {name}: ")
    Path("a.pth").mkdir()
    refusal(write_weights, WEIGHTS, Path("a.pth"))
    assert os.listdir() == ["a.pth"]
