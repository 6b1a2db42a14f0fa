"""Mistakes in data: one line that names file, figure and cure, before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsevit.cli import app as cli

Spoil = Callable[[Any], object]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def rename(own: Any) -> None:
    own.content["categories"][1]["name"] = "Dog"


def rename_all(own: Any) -> None:
    own.content["categories"] = [{"id": i, "name": f"kind{i}"} for i in range(12)]


def double(own: Any) -> None:
    own.content["categories"].append({"id": 3, "name": "dog"})


def strip_masks(own: Any, count: int) -> None:
    for one in own.content["annotations"][:count]:
        del one["segmentation"]


def swap(own: Any, before: str, after: str) -> None:
    text = own.config.read_text()
    assert before in text
    own.config.write_text(text.replace(before, after))


def shrink(own: Any) -> None:
    for one in own.content["images"]:
        one["width"] = 20


# (what is wrong, what is said, whether judging finds it too)
SPOILED: dict[str, tuple[Spoil, str, bool]] = {
    "class names": (
        rename,
        "{key}: 1 of the 2 class names are not in own/own.json: dog; it has cat, Dog: set {key}.classes=('cat', 'Dog')",
        True,
    ),
    "many class names": (
        rename_all,
        "kind8, kind9, … (12 in all): set {key}.classes=('kind0', 'kind1', ",
        True,
    ),
    "no categories": (lambda own: own.content["categories"].clear(), "it names no category at all", True),
    "one name twice": (double, "own/own.json has several categories of one name: dog", True),
    "no masks": (
        lambda own: strip_masks(own, 16),
        "own/own.json has no masks (segmentation), but the model has a mask head",
        True,
    ),
    "few masks": (
        lambda own: strip_masks(own, 3),
        "3 of the 16 annotations in own/own.json have no mask (segmentation), the first has id 1",
        True,
    ),
    "masks not collected": (
        lambda own: swap(own, '"gt_labels", "gt_masks"', '"gt_labels"'),
        "the pipeline yields no masks: write LoadAnnotations(with_bbox=True, with_mask=True)",
        False,
    ),
    "heads": (
        lambda own: swap(own, "bbox_head=dict(num_classes=2)", "bbox_head=dict(num_classes=80)"),
        "{key} has 2 classes (cat, dog), but the config has model.roi_head.bbox_head.num_classes=80",
        True,
    ),
    "no image": (lambda own: own.content["images"].clear(), "own/own.json holds no image", True),
    "no annotation": (lambda own: own.content["annotations"].clear(), "own/own.json holds no annotation", True),
    "no object of these classes": (
        lambda own: (
            own.content.update(
                annotations=[one for one in own.content["annotations"] if one["category_id"] == 1],
            )
            or swap(own, '("cat", "dog")', '("dog",)')
        ),
        "none of the 8 images of own/own.json has an annotation of dog",
        False,
    ),
    "small images": (shrink, "all of the 8 annotated images of own/own.json are smaller than 32 pixels", False),
    "an image file": (
        lambda own: (own.images / "3.png").unlink() or (own.images / "5.png").unlink(),
        "{key}: 2 of the 8 images are not there, the first is own/images/3.png",
        True,
    ),
    "all image files": (
        lambda own: swap(own, 'img_prefix="own/images"', 'img_prefix="own"'),
        "none of the 8 images is there, the first is own/0.png: set {key}.img_prefix",
        True,
    ),
    "image folder": (
        lambda own: swap(own, 'img_prefix="own/images"', 'img_prefix="own/pictures"'),
        "the image folder own/pictures is not there: set {key}.img_prefix",
        True,
    ),
    "annotation file": (
        lambda own: swap(own, 'ann_file="own/own.json"', 'ann_file="own/gone.json"'),
        "the data set's file is not there: own/gone.json",
        True,
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_training_refuses(own: Any, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, said, _ = SPOILED[name]
    spoil(own)
    own.write()
    assert run("adapt", str(own.config), "--device", "cpu", "--work-dir", "work") == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said.format(key="data.train") in err
    assert not Path("work").exists()


@pytest.mark.parametrize("name", [name for name, (_, _, judged) in SPOILED.items() if judged])
def test_judging_refuses(own: Any, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    from sparsevit.openmmlab.config import build_model, load_config

    spoil, said, _ = SPOILED[name]
    spoil(own)
    own.write()
    torch.save(build_model(load_config(own.config)).state_dict(), "weights.pth")
    assert run("evaluate", str(own.config), "weights.pth", "--device", "cpu") == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said.format(key="data.test") in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [', "the annotation file own/own.json is not JSON, or only part of it: "),
        ("", "the annotation file own/own.json is not JSON, or only part of it: "),
        ("[]", "cannot read the data set own/own.json"),
        ('{"annotations": []}', "as COCO's instances: there is no 'categories'"),
        ('{"images": [{"file_name": "a.png"}]}', "as COCO's instances: there is no 'id'"),
    ],
)
def test_an_annotation_file_that_is_none(own: Any, text: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    own.file.write_text(text)
    assert run("adapt", str(own.config), "--device", "cpu", "--work-dir", "work") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert not Path("work").exists()


def test_what_is_fine_is_let_through(own: Any) -> None:
    from sparsevit.openmmlab.config import build_model, load_config
    from sparsevit.openmmlab.data_checks import check_test_data, check_training_data
    from sparsevit.openmmlab.datasets import test_dataset, training_dataset

    own.content["categories"].append({"id": 3, "name": "bird"})  # more than the config asks for
    own.content["annotations"].append({**own.content["annotations"][0], "id": 99, "category_id": 3, "segmentation": []})
    own.content["annotations"].append({**own.content["annotations"][0], "id": 98, "iscrowd": 1, "segmentation": []})
    own.content["images"].append({"id": 99, "file_name": "unused.png", "height": 128, "width": 128})  # nothing on it
    own.write()
    settings = load_config(own.config)
    model = build_model(settings)
    check_training_data(training_dataset(settings.data.train), model)
    check_test_data(test_dataset(settings.data.test, batched=False), model, images=8)


def test_data_sets_inside_others_are_looked_at(own: Any) -> None:
    from sparsevit.errors import UserError
    from sparsevit.openmmlab.config import build_model, load_config
    from sparsevit.openmmlab.data_checks import check_training_data
    from sparsevit.openmmlab.datasets import training_dataset

    settings = load_config(own.config)
    model = build_model(settings)
    train = settings.data.train
    joined = [train, {**train, "img_prefix": "elsewhere"}]
    for wrapped in (
        joined,
        dict(type="RepeatDataset", times=2, dataset=joined[1]),
        dict(type="ConcatDataset", datasets=joined),
        dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=joined[1]),
    ):
        with pytest.raises(UserError, match="the image folder elsewhere is not there"):
            check_training_data(training_dataset(wrapped), model)


def test_the_validation_data_are_looked_at_before_training(own: Any, capfd: pytest.CaptureFixture[str]) -> None:
    swap(own, "evaluate_sparsities = None", "evaluate_sparsities = dict(sparsities=dict(a=0))")
    words = ("--cfg-options", "data.val.img_prefix=gone")
    assert run("adapt", str(own.config), "--device", "cpu", "--work-dir", "work", *words) == 2
    assert "error: data.val: the image folder gone is not there" in capfd.readouterr().err
    assert not Path("work").exists()
