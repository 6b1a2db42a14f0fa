"""Scenes and their pictures: reproducible, apart by split, within limits, with boxes and masks that fit."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevit import UserError
from sparsevit.data import digits
from sparsevit.data.digits import Crowd, Scenes, batches, draw_scenes, render

SIZE = (160, 200)


def same(left: Scenes, right: Scenes) -> bool:
    return all(np.array_equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(Scenes))


def part(scenes: Scenes, start: int, count: int) -> Scenes:
    return Scenes(**{field.name: getattr(scenes, field.name)[start : start + count] for field in fields(Scenes)})


@given(start=st.integers(0, 90), count=st.integers(1, 40), split=st.sampled_from(digits.SPLITS))
@settings(max_examples=20)
def test_a_scene_depends_on_its_number_alone(start: int, count: int, split: str) -> None:
    whole = draw_scenes(split, 3, 0, 130, SIZE)
    assert same(draw_scenes(split, 3, start, count, SIZE), part(whole, start, count))


def test_seeds_and_splits_differ_and_pictures_repeat() -> None:
    scenes = draw_scenes("val", 0, 0, 4, SIZE)
    assert not same(scenes, draw_scenes("val", 1, 0, 4, SIZE))
    assert not same(scenes, draw_scenes("train", 0, 0, 4, SIZE))
    first, second = render("val", scenes, SIZE), render("val", scenes, SIZE)
    assert torch.equal(first.images, second.images)
    for i in range(4):
        alone = render("val", part(scenes, i, 1), SIZE)
        assert torch.equal(alone.labels[0], first.labels[i])


def test_splits_share_no_scan_and_no_part_of_a_photograph() -> None:
    from sklearn.datasets import load_digits, load_sample_images

    rows = {split: {scan.tobytes() for scan in digits.scans(split)[0]} for split in digits.SPLITS}
    everything = (load_digits().images / 16).astype(np.float32)
    assert len(digits.scans("train")[0]) + len(digits.scans("val")[0]) == len(everything) == 1797
    assert rows["train"] | rows["val"] == {scan.tobytes() for scan in everything}
    assert not rows["train"] & rows["val"]
    train, val = digits.photographs("train"), digits.photographs("val")
    side_by_side = np.concatenate([train, val], axis=3)  # together they are the photographs, each column once
    whole = np.stack(load_sample_images().images).transpose(0, 3, 1, 2)
    assert np.array_equal(np.round(side_by_side * 255), whole)


@pytest.mark.parametrize("crowd", [Crowd(), Crowd(0, 1, 0.3), Crowd(5, 12, 0.9, 1.0)])
def test_pictures_keep_within_limits_and_boxes_are_tight(crowd: Crowd) -> None:
    scenes = draw_scenes("train", 0, 0, 12, SIZE, crowd)
    rendered = render("train", scenes, SIZE)
    assert rendered.images.shape == (12, 3, *SIZE)
    assert rendered.images.dtype == torch.uint8
    assert scenes.sides.max() <= min(SIZE) * crowd.largest
    assert scenes.sides.min() >= digits.MIN_SIDE - 1e-3
    for boxes, labels, masks in zip(rendered.boxes, rendered.labels, rendered.masks, strict=True):
        assert len(boxes) == len(labels) == len(masks) <= crowd.most
        assert masks.shape[1:] == SIZE
        for box, label, mask in zip(boxes.tolist(), labels.tolist(), masks, strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            assert len(rows) >= digits.MIN_INK
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert 0 <= label < len(digits.CLASSES)


def test_a_roomy_canvas_holds_as_many_digits_as_the_crowd_says() -> None:
    scenes = draw_scenes("val", 0, 0, 64, (800, 800), Crowd(3, 5, 0.1))
    counts = (scenes.labels >= 0).sum(axis=1)
    assert set(counts.tolist()) == {3, 4, 5}


@pytest.mark.parametrize("spread", [0.4, 0.7, 1.0])
def test_digits_keep_together(spread: float) -> None:
    scenes = draw_scenes("train", 0, 0, 64, SIZE, Crowd(4, 6, 0.2, spread))
    for scene in range(len(scenes)):
        places = scenes.centres[scene][scenes.labels[scene] >= 0]
        assert (np.ptp(places, axis=0) <= spread * np.array(SIZE[::-1])).all()


def test_labels_are_the_classes_of_the_scans_that_are_drawn() -> None:
    scenes = draw_scenes("val", 0, 0, 32, SIZE)
    drawn = scenes.labels >= 0
    assert np.array_equal(scenes.labels[drawn], digits.scans("val")[1][scenes.glyphs[drawn]])


def test_digits_stand_out_from_what_lies_around_them() -> None:
    rendered = render("val", draw_scenes("val", 2, 0, 8, SIZE), SIZE)
    for image, masks in zip(rendered.images.float(), rendered.masks, strict=True):
        for mask in masks:
            around = torch.nn.functional.max_pool2d(mask[None].float(), 15, 1, 7)[0].bool() & ~masks.any(0)
            contrast = image[:, mask].mean() - image[:, around].mean()
            assert contrast.abs() > 10  # grey levels


def test_a_picture_without_digits() -> None:
    scenes = draw_scenes("val", 0, 0, 1, SIZE, Crowd(0, 1))
    scenes.labels[:] = -1
    rendered = render("val", scenes, SIZE)
    assert len(rendered.boxes[0]) == len(rendered.labels[0]) == len(rendered.masks[0]) == 0


def test_batches_of_ranks_partition_the_series() -> None:
    streams = [batches("train", 5, SIZE, 3, start=rank, stride=2) for rank in range(2)]
    numbered = [next(streams[i % 2]) for i in range(4)]
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    for i, rendered in enumerate(numbered):
        expected = render("train", draw_scenes("train", 5, 3 * i, 3, SIZE), SIZE)
        assert torch.equal(rendered.images, expected.images)


@pytest.mark.parametrize(
    ("split", "seed", "size", "says"),
    [
        ("test", 0, SIZE, "no split 'test': train or val"),
        ("val", -1, SIZE, "must not be negative, got -1"),
        ("val", 0, (100, 448), "100x448 is too small for the digits: each side at least 119"),
    ],
)
def test_refused_series(split: str, seed: int, size: tuple[int, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        draw_scenes(split, seed, 0, 1, size)


def test_the_size_that_a_refusal_names_works() -> None:
    assert len(draw_scenes("val", 0, 0, 1, (119, 119))) == 1


@pytest.mark.parametrize(
    "limits", [(5, 3, 0.2), (-1, 3, 0.2), (0, 0, 0.2), (1, 2, 0.0), (1, 2, 1.0), (1, 2, 0.3, 0.3), (1, 2, 0.3, 1.1)]
)
def test_impossible_crowds(limits: tuple[int, int, float]) -> None:
    with pytest.raises(UserError, match=r"must lie|cannot hold|spread over"):
        Crowd(*limits)
