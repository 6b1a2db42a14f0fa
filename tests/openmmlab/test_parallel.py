"""What ranks say to each other in a training iteration, and what their training amounts to."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmcv.parallel import DataContainer

from sparsevit.openmmlab.parallel import to_device

EVERY = 3  # iterations between two lines of the log
RANKS = 2
RANK = """
import json, sys
from collections import Counter
from types import SimpleNamespace

import torch
import sparsevit.openmmlab
from mmcv.runner.log_buffer import LogBuffer
from sparsevit.openmmlab.parallel import ManyRanks, OneDevice, init_ranks
from sparsevit.openmmlab.step import LogFigures, OptimizerStep

class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(6, 6) for _ in range(20)])
        self.register_buffer("index", torch.arange(6))

    def forward(self, img, img_metas):
        out = self.layers(img)
        return {"loss_a": out.square().mean(), "loss_b": [out.mean(), out.abs().mean()], "acc": out.max()}

rank, ranks = init_ranks()
torch.manual_seed(0)
model = (ManyRanks if ranks > 1 else OneDevice)(Detector(), torch.device("cpu"))
groups = [dict(params=[each], weight_decay=0.1 * (each.ndim > 1)) for each in model.parameters()]
optimizer = torch.optim.AdamW(groups, lr=0.01)
runner = SimpleNamespace(model=model, optimizer=optimizer, log_buffer=LogBuffer(), data_loader=range(9))
hooks = OptimizerStep({"max_norm": 1.0}), LogFigures({"interval": EVERY, "hooks": [{}]})
said = []
for runner.inner_iter in range(9):
    images = torch.randn(8, 6, generator=torch.Generator().manual_seed(runner.inner_iter)).chunk(ranks)[rank]
    with torch.autograd.profiler.profile() as watched:
        runner.outputs = model.train_step({"img": images, "img_metas": [{}] * len(images)}, optimizer)
        for hook in hooks:
            hook.after_train_iter(runner)
    said.append(Counter(event.name for event in watched.function_events if event.name.startswith("c10d::")))
weights = [each.tolist() for each in model.state_dict().values()]
answer = {"said": said, "weights": weights, "losses": runner.log_buffer.val_history["loss"]}
assert ranks == 1 or model.output_device == torch.device("cpu")  # mmcv's log adds up memory there
print(json.dumps(answer))
"""


def trained(script: Path) -> list[dict[str, Any]]:
    """What each rank of a training prints."""
    store = TCPStore("localhost", 0, RANKS, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store above is the one
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    answers = [process.communicate(timeout=200) for process in processes]
    for process, (_, errors) in zip(processes, answers, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in answers]


def test_ranks_exchange_gradients_alone_between_two_lines_of_the_log(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("EVERY", str(EVERY)))
    ranked, single = trained(script), runpy.run_path(str(script))["answer"]
    for rank in ranked:
        # In the second iteration DDP agrees on the order in which gradients come.
        for number, said in enumerate(rank["said"][2:], 2):
            logged = (number + 1) % EVERY == 0
            assert said == {"c10d::allreduce_": 2 if logged else 1}, f"iteration {number}"
    assert ranked[0]["weights"] == ranked[1]["weights"]
    assert ranked[0]["losses"] == ranked[1]["losses"]
    for mine, other in zip(ranked[0]["weights"], single["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(other))
    # The mean over ranks of the loss of each half of the batch is the loss of the batch.
    assert ranked[0]["losses"] == pytest.approx(single["losses"], rel=1e-5)


def test_a_batchs_containers_are_opened_and_descriptions_stay() -> None:
    metas = [{"img_shape": (4, 6, 3), "seen": torch.ones(1)}]
    batch = {
        "img": DataContainer([torch.zeros(1, 3, 4, 6)], stack=True),
        "img_metas": DataContainer([metas], cpu_only=True),
        "gt_bboxes": DataContainer([[torch.ones(2, 4)]]),
        "plain": metas,
    }
    opened = to_device(batch, torch.device("meta"))
    assert opened["img"].device.type == opened["gt_bboxes"][0].device.type == "meta"
    assert opened["img_metas"] is metas
    assert opened["plain"] is metas
