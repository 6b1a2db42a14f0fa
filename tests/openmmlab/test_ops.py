"""The operators that torchvision serves compute what they should, others say which they are; checks of versions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmcv's operators importable
from mmcv.ops import RoIAlign, nms
from sparsevit.errors import MissingExtraError, UserError
from sparsevit.openmmlab import compat, ops


def slow_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, offset: int) -> list[int]:
    """Greedy non-maximum suppression, box by box; with `offset` 1 a box from 0 to 9 is 10 pixels wide."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1 + offset) * max(0.0, y2 - y1 + offset)

    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        mine = boxes[i].tolist()
        for j in kept:
            other = boxes[j].tolist()
            low = [max(a, b) for a, b in zip(mine[:2], other[:2], strict=True)]
            high = [min(a, b) for a, b in zip(mine[2:], other[2:], strict=True)]
            shared = area(*low, *high)
            if shared / (area(*mine) + area(*other) - shared) > threshold:
                break
        else:
            kept.append(i)
    return kept


@given(seed=st.integers(0, 1000), count=st.integers(1, 25), offset=st.sampled_from([0, 1]))
@settings(max_examples=40)
def test_nms_equals_a_slow_one(seed: int, count: int, offset: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 12
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 9], dim=1)
    scores = torch.rand(count, generator=generator)
    found, index = nms(boxes, scores, 0.4, offset=offset)
    assert index.tolist() == slow_nms(boxes, scores, 0.4, offset)
    assert torch.equal(found, torch.cat([boxes, scores[:, None]], dim=1)[index])


def slow_roi_align(features: torch.Tensor, roi: torch.Tensor, size: int, scale: float, samples: int) -> torch.Tensor:
    """Aligned RoI pooling of one box, the mean of bilinear samples; differentiable. `(C, size, size)`."""
    image, (x1, y1, x2, y2) = int(roi[0]), (roi[1:] * scale - 0.5).tolist()
    height, width = features.shape[-2:]

    def at(y: float, x: float) -> torch.Tensor:
        if not (-1 <= y <= height and -1 <= x <= width):
            return features.new_zeros(features.shape[1])
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        down, along = y - top, x - left
        map_ = features[image]
        upper = map_[:, top, left] * (1 - along) + map_[:, top, right] * along
        lower = map_[:, bottom, left] * (1 - along) + map_[:, bottom, right] * along
        return upper * (1 - down) + lower * down

    step_y, step_x = (y2 - y1) / size / samples, (x2 - x1) / size / samples
    cells = [
        torch.stack(
            [
                at(y1 + (row * samples + i + 0.5) * step_y, x1 + (column * samples + j + 0.5) * step_x)
                for i in range(samples)
                for j in range(samples)
            ]
        ).mean(dim=0)
        for row in range(size)
        for column in range(size)
    ]
    return torch.stack(cells, dim=1).view(-1, size, size)


def test_roi_align_equals_a_slow_one_forward_and_backward() -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 3, 9, 11, requires_grad=True)
    rois = torch.tensor([[0, 3.0, 2.0, 30.0, 25.0], [1, 10.0, 8.0, 43.0, 35.0], [1, -6.0, -3.0, 9.0, 60.0]])
    pooled = RoIAlign(4, spatial_scale=0.25, sampling_ratio=2)(features, rois)
    expected = torch.stack([slow_roi_align(features, roi, 4, 0.25, 2) for roi in rois])
    torch.testing.assert_close(pooled, expected)
    weight = torch.rand_like(pooled)
    (gradient,) = torch.autograd.grad((pooled * weight).sum(), features)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), features)
    torch.testing.assert_close(gradient, expected_gradient)


def test_roi_align_of_half_precision_features_keeps_the_boxes_exact() -> None:
    torch.manual_seed(0)
    features, rois = torch.rand(1, 2, 40, 40), torch.tensor([[0, 401.3, 402.7, 611.1, 599.9]])
    align = RoIAlign(3, spatial_scale=1 / 16, sampling_ratio=2)
    pooled = align(features.bfloat16(), rois)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), align(features.bfloat16().float(), rois), atol=4e-3, rtol=0)


def test_focal_loss_equals_mmdets_own_forward_and_backward() -> None:
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    torch.manual_seed(0)
    logits, labels = torch.randn(30, 5) * 4, torch.arange(30) % 6  # the last label is the background
    target = torch.nn.functional.one_hot(labels, 6)[:, :5]
    expected = logits.clone().requires_grad_()
    loss = py_sigmoid_focal_loss(expected, target, gamma=1.5, alpha=0.3, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), expected)
    served, served_gradient = torch.empty_like(logits), torch.empty_like(logits)
    ops.sigmoid_focal_loss_forward(logits, labels, logits.new_empty(0), served, gamma=1.5, alpha=0.3)
    ops.sigmoid_focal_loss_backward(logits, labels, logits.new_empty(0), served_gradient, gamma=1.5, alpha=0.3)
    torch.testing.assert_close(served, loss.detach())
    torch.testing.assert_close(served_gradient, gradient)
    labels, of_class = labels % 5, torch.arange(5) + 1.0
    unweighted = torch.empty_like(logits)
    ops.sigmoid_focal_loss_forward(logits, labels, logits.new_empty(0), unweighted, gamma=1.5, alpha=0.3)
    ops.sigmoid_focal_loss_forward(logits, labels, of_class, served, gamma=1.5, alpha=0.3)
    torch.testing.assert_close(served, unweighted * of_class[labels].unsqueeze(1))


@pytest.mark.skipif("mmcv-full" in ops.ops_in_use().source, reason="compiled operators are in use")
def test_a_missing_operator_names_itself_and_the_cure() -> None:
    from mmcv.ops import deform_conv2d

    with pytest.raises(UserError, match=r"'deform_conv_forward'.*pip install .*mmcv-full==1\.7\.2") as error:
        deform_conv2d(torch.rand(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), torch.rand(1, 1, 1, 1))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="pool_mode='max'"):
        RoIAlign(2, pool_mode="max")(torch.rand(1, 1, 4, 4), torch.tensor([[0, 0.0, 0.0, 2.0, 2.0]]))


@pytest.mark.parametrize(
    ("cuda", "source", "on_gpu"),
    [("13.0", "mmcv-full, compiled for CUDA 13.0", True), ("not available", "mmcv-full, compiled for the CPU", False)],
)
def test_a_compiled_extension_is_left_in_use(
    monkeypatch: pytest.MonkeyPatch, cuda: str, source: str, on_gpu: bool
) -> None:
    import mmcv.ops

    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(ops, "_compiled", lambda: True)
    monkeypatch.setattr(mmcv.ops, "get_compiling_cuda_version", lambda: cuda)
    ops.serve_with_torchvision()
    assert "mmcv._ext" not in sys.modules
    used = ops.ops_in_use()
    assert used.source.startswith(source)
    assert used.on_gpu is on_gpu


def test_prepare_twice_changes_nothing() -> None:
    extension = sys.modules["mmcv._ext"]
    compat.prepare()
    compat.prepare()
    assert sys.modules["mmcv._ext"] is extension


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that exactly these packages are installed."""

    def pretend(**versions: str) -> None:
        found = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(compat, "_installed", found.get)

    return pretend


@pytest.mark.parametrize(
    ("packages", "error", "said"),
    [
        ({"torchvision": "1", "mmdet": "2.28.2", "mmcv": "1.7.2", "mmcv_full": "1.7.2"}, UserError, "both installed"),
        ({"torchvision": "1", "mmdet": "3.3.0", "mmcv": "1.7.2"}, UserError, r"mmdet 3\.3\.0 .*'mmdet~=2\.28\.0'"),
        ({"torchvision": "1", "mmdet": "2.28.2", "mmcv": "2.1.0"}, UserError, r"mmcv 2\.1\.0 .*'mmcv~=1\.7\.0'"),
        ({"torchvision": "1", "mmdet": "2.28.2", "mmcv_full": "1.5.0"}, UserError, r"'mmcv-full~=1\.7\.0'"),
        ({"torchvision": "1", "mmdet": "2.28.2"}, MissingExtraError, r"sparsevit\[openmmlab\]"),
        ({"torchvision": "1", "mmcv": "1.7.2"}, MissingExtraError, r"sparsevit\[openmmlab\]"),
        ({"mmdet": "2.28.2", "mmcv": "1.7.2"}, MissingExtraError, r"sparsevit\[openmmlab\]"),
    ],
)
def test_wrong_installations_are_one_line(
    installed: Callable[..., None], packages: dict[str, str], error: type[UserError], said: str
) -> None:
    installed(**packages)
    with pytest.raises(error, match=said) as caught:
        compat.prepare()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("mmcv-full" in ops.ops_in_use().source, reason="compiled operators are in use")
def test_a_config_that_needs_another_operator_is_one_line(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from sparsevit.cli.app import main
    from sparsevit.openmmlab.config import build_model, load_config

    config = tiny()
    torch.save(build_model(load_config(config)).state_dict(), "weights.pth")
    option = ("--cfg-options", "model.test_cfg.rcnn.nms.type=soft_nms")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(config), "weights.pth", "--device", "cpu", *option])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: this model uses mmcv's operator 'softnms', which mmcv-full alone has: pip uninstall")
    assert err.count("\n") == 1
