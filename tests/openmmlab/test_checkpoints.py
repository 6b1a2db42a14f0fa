"""Half-written and damaged checkpoints are told from whole ones, and none is left by a save that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.openmmlab.checkpoints import checkpoints, is_complete, newest_checkpoint, write_checkpoint


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_2.pth"
    write_checkpoint({"state_dict": {"w": torch.arange(5000.0)}}, path)
    return path


def test_a_whole_one(whole: Path) -> None:
    assert is_complete(whole)
    assert torch.equal(torch.load(whole, weights_only=True)["state_dict"]["w"], torch.arange(5000.0))
    assert list(whole.parent.iterdir()) == [whole]


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_one(whole: Path, share: float) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * share)])
    assert not is_complete(whole)


def test_one_with_a_hole(whole: Path) -> None:
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(500)
    whole.write_bytes(content)
    assert not is_complete(whole)


def test_the_newest_whole_one_is_taken(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("epoch_10.pth", "epoch_3.pth", "epoch_best.pth", "checkpoint.tmp"):
        (whole.parent / name).write_bytes(b"PK half")
    assert [path.stem for path in checkpoints(whole.parent)] == ["epoch_2", "epoch_3", "epoch_10"]
    assert newest_checkpoint(whole.parent) == whole
    out = capsys.readouterr().out
    assert [line.split(whole.parent.name)[1].split()[0] for line in out.splitlines()] == [
        "/checkpoint.tmp",
        "/epoch_10.pth",
        "/epoch_3.pth",
    ]
    assert newest_checkpoint(whole.parent / "empty") is None


def test_a_save_that_fails_leaves_the_old_one_and_nothing_else(whole: Path) -> None:
    before = whole.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint({"state_dict": lambda: None}, whole)
    assert list(whole.parent.iterdir()) == [whole]
    assert whole.read_bytes() == before
