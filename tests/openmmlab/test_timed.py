"""A detector timed end to end: what it runs, on what, and that it stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsevit.latency.paper import survey_as_paper
from sparsevit.latency.target import Target
from sparsevit.latency.timing import survey
from sparsevit.openmmlab.evaluator import detector_evaluator
from sparsevit.openmmlab.timed import ExampleImages, TimedDetector, load_detector
from sparsevit.sparsity import Sparsity

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages that a config imports warn


@pytest.fixture
def detector(tiny: Callable[..., Path]) -> TimedDetector:
    return load_detector(tiny())


def test_it_is_given_images_of_the_test_data_at_any_size(detector: TimedDetector) -> None:
    assert detector.images.origin.startswith("images of ")
    images = detector.example_images(6, (96, 128))
    assert images.shape == (6, 3, 96, 128)
    assert torch.equal(images, detector.example_images(6, (96, 128)))
    assert torch.equal(images[4], images[0])  # the data set has four
    assert not torch.equal(images[1], images[0])


def test_without_data_it_is_given_noise_and_says_so(tiny: Callable[..., Path]) -> None:
    absent = tiny(more="data['test'] = dict(type='CocoDataset', ann_file='absent.json', pipeline=[], _delete_=True)\n")
    images = load_detector(absent).images
    assert images.origin == "noise, as the data set's file is not there: absent.json"
    assert images(2, (64, 96)).shape == (2, 3, 64, 96)
    assert ExampleImages.of_split(None).origin == "noise, as the config has no test data"


def test_detections_are_those_of_the_whole_model(detector: TimedDetector) -> None:
    backbone = detector.backbone
    images = detector.example_images(2, (128, 128))
    with torch.inference_mode():
        count = detector.detect(images, backbone(images))
    assert count == 20  # two images with at most 10 objects each, of any score
    assert detector.backbone is backbone


def test_a_failure_puts_the_backbone_back(detector: TimedDetector) -> None:
    backbone = detector.backbone
    with pytest.raises(AssertionError):  # the neck's own word for too few feature maps
        detector.detect(torch.zeros(1, 3, 128, 128), [torch.zeros(1, 1, 1, 1)])
    assert detector.backbone is backbone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_timed_end_to_end(detector: TimedDetector, dtype: str) -> None:
    target = Target("cpu", 1, dtype, batch=2, size=(128, 128), scope="detector")
    sparsity = Sparsity.of(0.6, detector.depths)
    found = survey(detector, target, [Sparsity.of(None, detector.depths), sparsity], budget_s=0.01)
    alone = survey(detector.backbone, Target("cpu", 1, dtype, 2, (128, 128)), [sparsity], budget_s=0.01)
    assert found.timings[1].median_ms > alone.timings[0].median_ms
    assert found.notes[0] == "timed with 20 objects found in 2 image(s); more take longer"
    assert next(detector.parameters()).dtype == torch.float32


def test_the_evaluator_has_it_to_time(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny()
    torch.save({"state_dict": load_detector(config).model.state_dict()}, tmp_path / "weights.pth")
    evaluator = detector_evaluator(config=str(config), checkpoint=str(tmp_path / "weights.pth"))
    detector = evaluator.detector()
    assert isinstance(detector, TimedDetector)
    assert detector.backbone is evaluator.backbone()
    assert detector.images.origin.startswith("images of ")


def test_the_papers_protocol_times_no_detector(detector: TimedDetector) -> None:
    with pytest.raises(Exception, match="scope backbone"):
        survey_as_paper(detector, Target("cpu", batch=4, scope="detector"), [])


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_runs_heads_behind_any_engine(detector: TimedDetector, engine: str, dtype: str) -> None:
    target = Target("cuda:0", dtype=dtype, batch=2, size=(128, 128), engine=engine, scope="detector")
    found = survey(
        detector, target, [Sparsity.of(None, detector.depths), Sparsity.of(0.6, detector.depths)], budget_s=1
    )
    assert all(timing.median_ms > 0 for timing in found.timings)
    assert all(found.peak_bytes)
    assert "20 objects" in found.notes[0]
