"""Training: the sparsity of each iteration, validation by name, whole checkpoints; a resumed run equals a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevit.adaptation import SparsitySchedule
from sparsevit.errors import UserError
from sparsevit.sparsity import PAPER_GRID, SparsitySpace

SPY = """
custom_imports = dict(imports=["sparsevit.openmmlab", "spy"])
custom_hooks = [dict(type="SparsityAdaptation", seed=5), dict(type="Spy", priority="VERY_LOW")]
"""
SPY_MODULE = """
import json, os
from mmcv.runner import HOOKS, Hook
from sparsevit.openmmlab.hooks import backbone_of

@HOOKS.register_module(force=True)
class Spy(Hook):
    def note(self, runner, what, **more):
        line = {"what": what, "iter": runner.iter, "sparsity": str(backbone_of(runner.model).sparsity), **more}
        with open(f"spy{os.environ.get('RANK', '0')}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\\n")

    def after_train_iter(self, runner):
        image = float(runner.data_batch["img"].sum())
        self.note(runner, "iter", loss=float(runner.outputs["loss"].detach()), image=image)

    def after_train_epoch(self, runner):
        self.note(runner, "epoch")
"""


@pytest.fixture
def spied(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A config of adaptation that notes sparsity, images and loss of each iteration in `spy0.jsonl`."""
    Path("spy.py").write_text(SPY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tiny(more=SPY)


def run(config: Path, work_dir: str, **options: Any) -> Path:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.train import train

    return train(load_config(config, options), Path(work_dir), device="cpu")


def notes(what: str = "iter", rank: int = 0) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path(f"spy{rank}.jsonl").read_text().splitlines()]
    return [line for line in lines if line["what"] == what]


def test_adaptation_sets_the_schedules_sparsity_each_iteration_and_restores(spied: Path) -> None:
    last = run(spied, "work")
    schedule = SparsitySchedule(SparsitySpace((2, 2, 6, 2), PAPER_GRID), 5)
    seen = notes()
    assert [line["sparsity"] for line in seen] == [str(schedule(i)) for i in range(4)]
    assert len({line["sparsity"] for line in seen}) == 4
    assert len({line["image"] for line in seen}) == 4, "every epoch goes on where the last one ended"
    assert {line["sparsity"] for line in notes("epoch")} == {"0/0/0,0,0/0"}
    assert last == Path("work/epoch_2.pth")


def test_validation_is_reported_under_each_name(spied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(spied, "work", **{"runner.max_epochs": 1})
    lines = [json.loads(line) for line in Path("work/training.log.json").read_text().splitlines()]
    judged = [line for line in lines if "dense/bbox_mAP" in line]
    assert len(judged) == 1
    assert judged[0]["mode"] == "val"
    assert {"dense/segm_mAP", "60%/bbox_mAP", "60%/segm_mAP"} <= judged[0].keys()
    assert "loss" not in judged[0]
    assert [line["iter"] for line in lines if line.get("mode") == "train"] == [1, 2]
    out = capsys.readouterr().out
    assert "epoch 1, dense: bbox_mAP 0." in out
    assert "epoch 1, 60%: bbox_mAP 0." in out


def test_a_resumed_run_equals_an_uninterrupted_one(
    spied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsevit.openmmlab.hooks import SaveCheckpoints

    options = {"runner.max_epochs": 3, "evaluate_sparsities": None}
    whole = torch.load(run(spied, "whole", **options), weights_only=True)
    expected = notes()
    Path("spy0.jsonl").unlink()

    save = SaveCheckpoints.after_train_epoch

    def save_and_die(self: SaveCheckpoints, runner: Any) -> None:
        save(self, runner)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SaveCheckpoints, "after_train_epoch", save_and_die)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(spied, "parts", **options)
    Path("parts/checkpoint.tmp").write_bytes(b"half a check")
    last = run(spied, "parts", **options)
    assert notes() == expected
    parts = torch.load(last, weights_only=True)
    assert parts["meta"]["iter"] == 6
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][key]), key
    capsys.readouterr()
    assert run(spied, "parts", **options) == last
    assert notes() == expected, "nothing is left to train"
    assert "resuming from parts/epoch_3.pth" in capsys.readouterr().out


@pytest.mark.parametrize(("keep", "left"), [(2, [3, 4]), (1, [4]), (-1, [1, 2, 3, 4])])
def test_the_newest_checkpoints_stay_whole(tmp_path: Path, keep: int, left: list[int]) -> None:
    from types import SimpleNamespace

    from sparsevit.openmmlab.hooks import SaveCheckpoints, checkpoints

    model = torch.nn.Linear(2, 2)
    model.CLASSES = ("a",)
    hook = SaveCheckpoints(keep=keep)
    for epoch in range(4):
        hook.after_train_epoch(
            SimpleNamespace(
                rank=0,
                epoch=epoch,
                iter=epoch + 1,
                max_epochs=4,
                model=model,
                optimizer=torch.optim.SGD(model.parameters(), 0.1),
                work_dir=str(tmp_path),
            )
        )
    (tmp_path / "checkpoint.tmp").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == [f"epoch_{n}.pth" for n in left]
    assert all(torch.load(path, weights_only=True)["meta"]["epoch"] for path in checkpoints(tmp_path))


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    from sparsevit.openmmlab.hooks import checkpoints

    for number in (10, 9, 100):
        (tmp_path / f"epoch_{number}.pth").touch()
    assert [path.stem for path in checkpoints(tmp_path)] == ["epoch_9", "epoch_10", "epoch_100"]


def test_two_ranks_draw_the_same_sparsity_and_other_images(spied: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d"]
    command = [sys.executable, *words, "--rdzv_endpoint", "localhost:0", "-m", "sparsevit", "adapt", str(spied)]
    options = ["--work-dir", "work", "--device", "cpu", "--cfg-options", "data.train.images=8"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = notes(rank=0), notes(rank=1)
    assert len(first) == 4
    assert [line["sparsity"] for line in first] == [line["sparsity"] for line in second]
    assert len({line["image"] for line in first + second}) == 8
    for said in ("epoch 1, dense:", "epoch 2, 60%:", "supernet: work/epoch_2.pth", "sparsity-aware adaptation: 4/4"):
        assert done.stdout.count(said) == 1, done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runner.type": "OtherRunner"}, "use 'EpochBasedRunner'"),
        ({"optimizer": None}, "no table 'optimizer'"),
        ({"load_from": "gone.pth"}, "checkpoint not found: gone.pth"),
        ({"data.train.type": "Nothing"}, "cannot read the data set Nothing"),
        ({"data.train.size": [32, 32]}, "too small for the digits"),
        ({"custom_hooks": [{"type": "SparsityAdaptation", "ratios": [0, 2]}]}, "2"),
    ],
)
def test_what_cannot_be_trained_is_one_line(tiny: Callable[..., Path], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        run(tiny(), "work", **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("work").exists() or not list(Path("work").glob("epoch*"))


def test_a_folder_with_checkpoints_of_another_model_is_refused(tiny: Callable[..., Path]) -> None:
    Path("work").mkdir()
    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": {}}, "work/epoch_1.pth")
    with pytest.raises(UserError, match=r"work/epoch_1\.pth is a checkpoint of another model"):
        run(tiny(), "work")


def test_devices_that_are_not_there() -> None:
    from sparsevit.openmmlab.parallel import own_device

    assert own_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "tpu", "cuda:x"):
        with pytest.raises(UserError, match=f"device '{name}' is not there"):
            own_device(name)
