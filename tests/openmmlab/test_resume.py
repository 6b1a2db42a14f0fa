"""A training that was interrupted and goes on repeats what an uninterrupted one does, on stock COCO data too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPY = """
custom_imports = dict(imports=["sparsevit.openmmlab", "resume_spy"])
custom_hooks = [dict(type="SparsityAdaptation", seed=5), dict(type="ResumeSpy", priority="VERY_LOW")]
runner = dict(max_epochs=3)
"""
SPY_MODULE = """
import json, os, time
from pathlib import Path
from mmcv.runner import HOOKS, Hook
from sparsevit.openmmlab.hooks import backbone_of

@HOOKS.register_module(force=True)
class ResumeSpy(Hook):
    def after_train_iter(self, runner):
        img, metas = (getattr(runner.data_batch[key], "data", runner.data_batch[key]) for key in ("img", "img_metas"))
        if isinstance(metas[0], list):  # in a container, by device
            img, metas = img[0], metas[0]
        line = dict(
            epoch=runner.epoch,
            iter=runner.iter,
            sparsity=str(backbone_of(runner.model).sparsity),
            files=[Path(meta["filename"]).name for meta in metas],
            pixels=float(img.double().sum()),
            loss=float(runner.outputs["loss"].detach()),
        )
        with open(f"resume{os.environ.get('RANK', '0')}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\\n")
        if runner.iter == int(os.environ.get("STOP_AT", "-1")):
            Path("stopped").touch()
            time.sleep(60)
"""

# pycocotools' masks, with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ITERATIONS = 4  # of an epoch: eight images in batches of two


@pytest.fixture
def spied(own: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    Path("resume_spy.py").write_text(SPY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    with own.config.open("a") as config:
        config.write(SPY)
    return own.config


def options(workers: int, device_pipeline: bool) -> dict[str, Any]:
    return {"data.workers_per_gpu": workers, "data.device_pipeline": device_pipeline, "data.image_cache": False}


def run(config: Path, work_dir: str, options: dict[str, Any]) -> Path:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.train import train

    return train(load_config(config, options), Path(work_dir), device="cpu")


def taken(rank: int = 0) -> list[dict[str, Any]]:
    """What was noted of each iteration since the last call."""
    path = Path(f"resume{rank}.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return lines


@pytest.fixture
def dying_after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    from sparsevit.openmmlab.hooks import SaveCheckpoints

    save = SaveCheckpoints.after_train_epoch

    def save_and_die(self: SaveCheckpoints, runner: Any) -> None:
        save(self, runner)
        raise KeyboardInterrupt

    def switch_on() -> None:
        monkeypatch.setattr(SaveCheckpoints, "after_train_epoch", save_and_die)

    return switch_on


@pytest.mark.parametrize("device_pipeline", [True, False], ids=["our loader", "mmdet's loader"])
def test_losses_after_resuming_equal_those_without_with_worker_processes(
    spied: Path, device_pipeline: bool, dying_after_each_epoch: Callable[[], None]
) -> None:
    run(spied, "whole", options(2, device_pipeline))
    whole = taken()
    assert [line["iter"] for line in whole] == list(range(3 * ITERATIONS))
    assert all(len({file for line in whole if line["epoch"] == n for file in line["files"]}) == 8 for n in range(3))
    assert len({line["pixels"] for line in whole}) == 3 * ITERATIONS, "every epoch is augmented in another way"
    run(spied, "alone", options(0, device_pipeline))
    assert taken() == whole, "the number of worker processes changes nothing"
    dying_after_each_epoch()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(spied, "parts", options(2, device_pipeline))
    assert taken() == whole


def test_a_damaged_checkpoint_is_passed_over_with_a_line(spied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = options(0, True)
    last = run(spied, "work", settings)
    whole = taken()
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    Path("work/checkpoint.tmp").write_bytes(content[:1000])
    capsys.readouterr()
    assert run(spied, "work", settings) == last
    out = capsys.readouterr().out.splitlines()
    assert "note: work/checkpoint.tmp was not finished and is not used" in out
    assert "note: work/epoch_3.pth is damaged or half-written and is not used" in out
    assert "resuming from work/epoch_2.pth" in out
    assert taken() == whole[2 * ITERATIONS :]
    assert not Path("work/checkpoint.tmp").exists()


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path]), **more}


def command(config: Path, *words: str) -> list[str]:
    set_ = [f"--cfg-options={key}={json.dumps(value)}" for key, value in options(2, True).items()]
    return ["-m", "sparsevit", "adapt", str(config), "--work-dir", "work", "--device", "cpu", *set_, *words]


def test_ctrl_c_amid_an_epoch_goes_on_from_the_last_whole_one(spied: Path) -> None:
    run(spied, "whole", options(2, True))
    whole = taken()
    process = subprocess.Popen(
        [sys.executable, *command(spied)],
        env=environment(STOP_AT=str(ITERATIONS + 1)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the worker processes too
    )
    deadline = time.monotonic() + 120
    while not Path("stopped").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n"), out
    assert taken() == whole[: ITERATIONS + 2]
    run(spied, "work", options(2, True))
    assert taken() == whole[ITERATIONS:]


TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d")


def on_two_ranks(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, *TORCHRUN, "--rdzv_endpoint", "localhost:0", *command(config, *words)]
    return subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=200, check=False)


def test_two_ranks_share_the_data_and_resume(spied: Path) -> None:
    done = on_two_ranks(spied)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = taken(0), taken(1)
    assert len(first) == len(second) == 3 * ITERATIONS // 2
    assert [line["sparsity"] for line in first] == [line["sparsity"] for line in second]
    assert len({line["sparsity"] for line in first}) == len(first)
    for epoch in range(3):
        shares = [
            [file for line in lines if line["epoch"] == epoch for file in line["files"]] for lines in (first, second)
        ]
        assert sorted(shares[0] + shares[1]) == [f"{n}.png" for n in range(8)]
    said = [line for line in done.stdout.splitlines() if line.startswith("supernet: ")]
    assert said == ["supernet: work/epoch_3.pth"]
    assert done.stdout.count("sparsity-aware adaptation: 6/6") == 1
    Path("work/epoch_3.pth").write_bytes(b"PK half")
    again = on_two_ranks(spied)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("resuming from work/epoch_2.pth") == 1
    assert taken(0) == first[-2:]
    assert taken(1) == second[-2:]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cfg-options", 'data.train.img_prefix="gone"'], "error: data.train: the image folder gone is not there"),
        (["--cfg-options", "optimizer=null"], "error: the config has no table 'optimizer'"),
    ],
    ids=["found by all ranks together", "found before ranks have joined"],
)
def test_a_mistake_is_said_once(spied: Path, words: list[str], said: str) -> None:
    done = on_two_ranks(spied, *words)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        line for line in done.stderr.splitlines() if line.startswith(said)
    ]
    assert done.stderr.count(said) == 1
    assert "interrupted" not in done.stderr
    assert not Path("work").exists()
