"""Every habit of mmdet 2.x's training settings works, or is refused in one line that says what to write."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.errors import UserError
from sparsevit.openmmlab.config import load_config
from sparsevit.openmmlab.training_forms import adapts, by_epochs, scale_rate, training_form, with_adaptation

CFG1 = [[0.3, 0.3], [0.0, 0.0], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0.0, 0.0]]
BASE = {
    "model": {"backbone": {"type": "SparseViT"}},
    "data": {"samples_per_gpu": 2, "workers_per_gpu": 2, "train": {"type": "A"}, "val": {"type": "B"}},
    "optimizer": {"type": "AdamW", "lr": 1e-4},
    "optimizer_config": {"grad_clip": None},
    "lr_config": {"policy": "step", "step": [8, 11]},
    "runner": {"type": "EpochBasedRunner", "max_epochs": 12},
}
CUMULATIVE = {"type": "GradientCumulativeOptimizerHook", "cumulative_iters": 4, "grad_clip": {"max_norm": 1}}


def config(**more: Any) -> Any:
    from mmcv import Config

    return Config({**json.loads(json.dumps(BASE)), **more})


def formed(**more: Any) -> tuple[Any, list[str]]:
    given = config(**more)
    before = given.pretty_text
    found = training_form(given, 7)
    assert given.pretty_text == before, "the user's own config stays"
    return found


@pytest.mark.parametrize(
    ("given", "optimizer_config"),
    [
        ({"fp16": {"loss_scale": 512.0}}, {"grad_clip": None}),
        ({"fp16": {"loss_scale": {"init_scale": 512}}}, {"grad_clip": None}),
        (
            {"optimizer_config": {"type": "Fp16OptimizerHook", "loss_scale": "dynamic", "grad_clip": {"max_norm": 1}}},
            {"grad_clip": {"max_norm": 1}},
        ),
        (
            {"optimizer_config": {**CUMULATIVE, "type": "GradientCumulativeFp16OptimizerHook", "loss_scale": 512.0}},
            {**CUMULATIVE},
        ),
        (
            {
                "optimizer_config": {
                    "type": "DistOptimizerHook",
                    "update_interval": 1,
                    "coalesce": True,
                    "use_fp16": True,
                }
            },
            {"grad_clip": None},
        ),
    ],
)
def test_mixed_precision_is_autocast(given: dict[str, Any], optimizer_config: dict[str, Any]) -> None:
    found, (note,) = formed(**given)
    assert found.autocast == "bfloat16"
    assert "fp16" not in found
    assert found.optimizer_config == optimizer_config
    assert "is read as autocast = 'bfloat16', which needs no loss_scale" in note


def test_a_precision_that_is_given_stays() -> None:
    assert formed(fp16={"loss_scale": 1.0}, autocast="float32")[0].autocast == "float32"
    assert formed(fp16=None)[0].get("autocast") is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "OptimizerHook", "grad_clip": {"max_norm": 1}}, {"grad_clip": {"max_norm": 1}}),
        (CUMULATIVE, CUMULATIVE),
        ({"type": "DistOptimizerHook", "update_interval": 4, "grad_clip": {"max_norm": 1}}, CUMULATIVE),
        ({"type": "TheirOwn", "x": 1}, {"type": "TheirOwn", "x": 1}),
        (None, None),
    ],
)
def test_optimizer_hooks(given: Any, expected: Any) -> None:
    found, notes = formed(optimizer_config=given)
    assert found.optimizer_config == expected
    assert notes == []


def test_batch_and_workers_wherever_they_stand() -> None:
    data = {"train": {}, "train_dataloader": {"samples_per_gpu": 3, "workers_per_gpu": 5, "persistent_workers": True}}
    found, _ = formed(data=data)
    assert (found.data.samples_per_gpu, found.data.workers_per_gpu) == (3, 5)
    assert formed(data={"imgs_per_gpu": 4, "train": {}})[0].data.samples_per_gpu == 4


def test_lengths_of_training() -> None:
    assert formed(runner=None, total_epochs=9)[0].runner == {"type": "EpochBasedRunner", "max_epochs": 9}
    amp = formed(runner={"type": "EpochBasedRunnerAmp", "max_epochs": 36})[0]
    assert amp.runner == {"type": "EpochBasedRunner", "max_epochs": 36}


def test_evaluation_is_validation_at_the_configs_own_sparsity() -> None:
    data = {**BASE["data"], "val_dataloader": {"samples_per_gpu": 4}}
    found, _ = formed(evaluation={"metric": ["bbox", "segm"], "interval": 3}, data=data)
    assert found.evaluate_sparsities == {"interval": 3, "batch": 4, "sparsities": {"dense": None}}
    sparse = {"backbone": {"type": "SparseViT", "pruning_ratios": CFG1}}
    found, (note,) = formed(evaluation={"metric": "bbox"}, model=sparse, random_sample=True)
    assert found.evaluate_sparsities.sparsities == {"0.3/0/0.1,0.2,0.2/0": CFG1}
    assert found.evaluate_sparsities.batch == 1
    assert note.endswith("validation has the config's own, 0.3/0/0.1,0.2,0.2/0")
    own = {"sparsities": {"half": 0.5}}
    assert formed(evaluation={"metric": "bbox"}, evaluate_sparsities=own)[0].evaluate_sparsities == own
    assert formed(evaluation={"metric": "bbox"}, evaluate_sparsities=None)[0].evaluate_sparsities is None


def test_random_sample_is_adaptation() -> None:
    found, notes = formed(random_sample=True, custom_hooks=[{"type": "NumClassCheckHook"}])
    assert found.custom_hooks == [{"type": "NumClassCheckHook"}, {"type": "SparsityAdaptation", "seed": 7}]
    assert len(notes) == 1
    named = with_adaptation(config(random_sample=True), 3)
    assert [hook["seed"] for hook in training_form(named, 7)[0].custom_hooks] == [3]
    assert not adapts(formed(random_sample=False)[0])


@pytest.mark.parametrize(
    "given",
    [
        {"workflow": [("train", 1)]},
        {"workflow": [("train", 5)]},
        {"gpu_ids": [0], "dist_params": {"backend": "nccl"}, "log_level": "INFO", "device": "cuda"},
        {"gpu_ids": range(1)},
        {"auto_scale_lr": {"enable": False, "base_batch_size": 16}, "mp_start_method": "fork", "opencv_num_threads": 0},
        {"log_config": {"interval": 50, "hooks": [{"type": "TextLoggerHook"}]}, "load_from": None, "resume_from": None},
    ],
)
def test_what_changes_nothing_is_accepted(given: dict[str, Any]) -> None:
    assert formed(**given)[1] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workflow": [("train", 1), ("val", 1)]}, "write workflow = [('train', 1)]"),
        ({"gpu_ids": [0, 1]}, "torchrun --nproc_per_node 2"),
        ({"runner": {"type": "OtherRunner"}}, "use 'EpochBasedRunner' with max_epochs, or 'IterBasedRunner'"),
        ({"runner": {"type": "EpochBasedRunner"}}, "runner.max_epochs is None"),
        ({"runner": {"type": "IterBasedRunner", "max_iters": 0}}, "runner.max_iters is 0"),
        ({"evaluation": {"metric": ["bbox", "proposal"]}}, "evaluation.metric 'proposal' is not among bbox, segm"),
        (
            {"evaluation": {"metric": "bbox", "save_best": "auto"}},
            "evaluation.save_best is not supported: leave it out",
        ),
        ({"evaluation": {"metric": "bbox"}, "data": {"train": {}}}, "no data.val to judge on"),
        ({"checkpoint_config": {"by_epoch": False, "interval": 500}}, "set checkpoint_config = dict(interval=1)"),
        ({"data": {"train_dataloader": {"sampler": 1}}}, "data.train_dataloader.sampler is not supported"),
        ({"data": {"train_dataloader": {"shuffle": False}}}, "training shuffles its images"),
        ({"random_sample": "always"}, "write True or False"),
    ],
)
def test_what_is_refused_says_what_to_write(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        formed(**given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_loggers_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsevit.openmmlab import training_forms

    hooks = {"interval": 50, "hooks": [{"type": "TextLoggerHook"}, {"type": "TensorboardLoggerHook"}]}
    monkeypatch.setattr(training_forms, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"TensorboardLoggerHook in log_config\.hooks needs the package tensorboard: pip"
    ):
        formed(log_config=hooks)
    monkeypatch.setattr(training_forms, "find_spec", lambda name: object())
    assert formed(log_config=hooks)[0].log_config == hooks


@pytest.mark.parametrize(("enable", "ranks", "rate"), [(False, 8, 1e-4), (True, 8, 1e-4), (True, 1, 1.25e-5)])
def test_the_rate_in_proportion_to_the_images(enable: bool, ranks: int, rate: float) -> None:
    found = config(auto_scale_lr={"enable": enable, "base_batch_size": 16})
    scale_rate(found, ranks)
    assert found.optimizer.lr == pytest.approx(rate)
    with pytest.raises(UserError, match=r"needs auto_scale_lr\.base_batch_size"):
        scale_rate(config(auto_scale_lr={"enable": True}), 1)


def test_iterations_are_epochs_of_which_the_last_is_cut() -> None:
    found, _ = formed(
        runner={"type": "IterBasedRunner", "max_iters": 90_000},
        checkpoint_config={"by_epoch": False, "interval": 10_000},
        evaluation={"metric": "bbox", "interval": 90_000},
    )
    found, (note,) = by_epochs(found, 7330)
    assert found.runner == {"type": "EpochsToIteration", "max_iters": 90_000, "max_epochs": 13}
    assert found.lr_config.by_epoch is False
    assert (found.checkpoint_config.interval, found.evaluate_sparsities.interval) == (1, 12)
    assert note.startswith(
        "max_iters 90000 is 12.28 epochs of 7330 iterations; checkpoints are written at the end of every epoch"
    )
    assert by_epochs(config(), 10)[1] == []


# Trained for real, on the small detector.


def run(path: Path, work_dir: str = "work", **options: Any) -> Path:
    from sparsevit.openmmlab.train import train

    return train(load_config(path, {"evaluate_sparsities": None, **options}), Path(work_dir), device="cpu")


def test_a_training_by_iterations_ends_where_it_should_and_resumes(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    more = (
        "runner = dict(type='IterBasedRunner', max_iters=5, _delete_=True)\n"
        "lr_config = dict(policy='step', step=[2, 4], gamma=0.1, _delete_=True)\n"
    )
    path = tiny(more=more)
    last = run(path)
    said = capsys.readouterr().out
    assert "note: max_iters 5 is 2.5 epochs of 2 iterations" in said
    assert "training: 5/5" in said
    assert last == Path("work/epoch_3.pth")
    assert "type='IterBasedRunner', max_iters=5" in Path("work/config.py").read_text()
    content = torch.load(last, weights_only=True)
    assert content["meta"]["iter"] == 5
    assert [group["lr"] for group in content["optimizer"]["param_groups"]] == pytest.approx(
        [1e-5] * len(content["optimizer"]["param_groups"])
    )
    Path("parts").mkdir()
    Path("work/epoch_2.pth").rename("parts/epoch_2.pth")
    again = torch.load(run(path, "parts"), weights_only=True)
    assert all(torch.equal(value, again["state_dict"][key]) for key, value in content["state_dict"].items())


def test_load_from_and_resume_from(tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    whole = torch.load(run(tiny(), "whole", **{"checkpoint_config.max_keep_ckpts": -1}), weights_only=True)
    first = torch.load("whole/epoch_1.pth", weights_only=True)
    capsys.readouterr()
    resumed = torch.load(run(tiny(), "resumed", resume_from="whole/epoch_1.pth"), weights_only=True)
    assert "resuming from whole/epoch_1.pth" in capsys.readouterr().out
    assert resumed["meta"]["iter"] == whole["meta"]["iter"] == 4
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    run(tiny(), "loaded", load_from="whole/epoch_1.pth", **{"optimizer.lr": 0.0, "runner.max_epochs": 1})
    loaded = torch.load("loaded/epoch_1.pth", weights_only=True)
    assert loaded["meta"]["epoch"] == 1
    for key, value in first["state_dict"].items():
        if "num_batches" not in key:
            torch.testing.assert_close(loaded["state_dict"][key], value, msg=key)


def test_a_file_of_weights_alone_cannot_be_resumed(tiny: Callable[..., Path]) -> None:
    from sparsevit.openmmlab.config import build_model

    torch.save(build_model(load_config(tiny())).state_dict(), "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth has weights, but no training .* load_from starts anew") as error:
        run(tiny(), resume_from="weights.pth")
    assert "\n" not in str(error.value)


def test_a_config_inside_a_checkpoint_is_not_executed(tiny: Callable[..., Path]) -> None:
    content = torch.load(run(tiny(), "whole", **{"runner.max_epochs": 1}), weights_only=True)
    content["meta"]["config"] = "import pathlib\npathlib.Path('executed').touch()\n"
    torch.save(content, "theirs.pth")
    run(tiny(), resume_from="theirs.pth")
    assert not Path("executed").exists()


def test_the_papers_adaptation_trains_at_random_and_validates_at_its_own(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsevit.model.backbone import SparseSwin

    seen: dict[bool, set[str]] = {True: set(), False: set()}
    forward = SparseSwin.forward

    def noting(self: SparseSwin, image: torch.Tensor) -> Any:
        seen[self.training].add(str(self.sparsity))
        return forward(self, image)

    monkeypatch.setattr(SparseSwin, "forward", noting)
    more = (
        f"pruning_ratios = {CFG1}\nrandom_sample = True\ncustom_imports = dict(imports=[])\n"
        "evaluation = dict(metric=['bbox', 'segm'])\ndel evaluate_sparsities\n"
    )
    path = tiny(more=more, base="mask_rcnn.py")
    settings = load_config(path)
    settings._cfg_dict.pop("evaluate_sparsities", None)  # the base's
    from sparsevit.openmmlab.train import train

    train(settings, Path("work"), device="cpu", seed=3)
    assert len(seen[True]) == 4, "another sparsity each iteration"
    assert seen[False] == {"0.3/0/0.1,0.2,0.2/0"}
    said = capsys.readouterr().out
    assert said.count("note: random_sample: each training iteration draws a random sparsity") == 1
    assert "epoch 2, 0.3/0/0.1,0.2,0.2/0: bbox_mAP 0." in said


def test_tensorboard(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == "work/tf_logs"

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.append((tag, value, step))

        def close(self) -> None:
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("sparsevit.openmmlab.training_forms.find_spec", lambda name: object())
    hooks = [{"type": "TextLoggerHook"}, {"type": "TensorboardLoggerHook"}]
    run(tiny(), **{"log_config.hooks": hooks, "runner.max_epochs": 1})
    shown = {step: value for tag, value, step in written if tag == "train/loss"}
    assert shown.keys() == {1, 2}
    assert all(value > 0 for value in shown.values())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize(
    ("wrap", "iterations"),
    [
        (lambda train: {"type": "RepeatDataset", "times": 3, "dataset": train}, 5),
        (lambda train: {"type": "ConcatDataset", "datasets": [train, train]}, 3),
        (lambda train: [train, train], 3),
        (lambda train: {"type": "ClassBalancedDataset", "oversample_thr": 1e-3, "dataset": train}, 2),
        (lambda train: {**train, "ann_file": [train["ann_file"]] * 2, "img_prefix": [train["img_prefix"]] * 2}, 3),
    ],
    ids=["repeat", "concat", "list", "balanced", "files"],
)
def test_data_sets_of_data_sets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny: Callable[..., Path],
    wrap: Callable[[Any], Any],
    iterations: int,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import coco_tiny  # type: ignore[import-not-found]

    coco_tiny.write_coco(Path("data/coco"))
    options = coco_tiny.small(**coco_tiny.small_heads("FasterRCNN"), evaluate_sparsities=None)
    settings = load_config("builtin:coco/faster_rcnn_swin_t.py", options)
    settings.data.train = wrap(settings.data.train.to_dict())
    from sparsevit.openmmlab.train import train

    assert train(settings, Path("work"), device="cpu") == Path("work/epoch_1.pth")
    assert re.search(rf"training: {iterations}/{iterations}", capsys.readouterr().out)
