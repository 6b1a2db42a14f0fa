"""What a detector is judged in, and that the engine judges as the plain backbone does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

from sparsevit.errors import UserError
from sparsevit.sparsity import Sparsity


def test_precision() -> None:
    from sparsevit.openmmlab.judging import precision_on

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert precision_on(gpu, "auto") == precision_on(gpu, "auto", "bfloat16") == torch.bfloat16
    assert precision_on(gpu, "auto", "float16") == torch.float16
    assert precision_on(gpu, "float32", "float16") == torch.float32
    assert {precision_on(cpu, name, "float16") for name in ("auto", "float32", "bfloat16", "float16")} == {
        torch.float32
    }
    with pytest.raises(UserError, match="precision 'half' is unknown: write auto, float32, bfloat16, float16"):
        precision_on(cpu, "half")


def test_figures_follow_the_sparsity(tiny: Callable[..., Path]) -> None:
    from sparsevit.openmmlab.config import build_model, load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation
    from sparsevit.openmmlab.judging import Judge

    config = load_config(tiny())
    torch.manual_seed(0)
    model: Any = build_model(config)
    evaluation = DetectorEvaluation.of_dataset(config.data.test, batch=2)
    judge = Judge(model, evaluation, torch.float32)
    assert judge.fast
    passes: list[object] = []
    judge._engine.register_forward_hook(lambda *_: passes.append(_))  # type: ignore[union-attr]
    for text in ("dense", "0.6"):
        wanted = Sparsity.of(text, model.backbone.depths)
        found = judge.metrics(wanted, images=3)
        assert model.backbone.sparsity == judge._engine.engine.sparsity == wanted  # type: ignore[union-attr]
        assert found == pytest.approx(evaluation.metrics(model, images=3), abs=1e-3)
    assert len(passes) == 2 * 2  # batches of 2 and 1, by the engine


@pytest.mark.gpu
def test_under_the_engine_as_under_the_plain_backbone(data_folder: Path) -> None:
    from sparsevit.openmmlab.config import build_model, load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation
    from sparsevit.openmmlab.judging import Judge

    options = {"data.test.images": 100, "data.test.folder": str(data_folder)}
    config = load_config("builtin:digits/supernet.py", options)
    model: Any = build_model(config, "builtin:digits").to("cuda")
    evaluation = DetectorEvaluation.of_dataset(config.data.test, batch=16)
    fast, plain = (Judge(model, evaluation, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert fast.fast
    assert not plain.fast  # on a GPU, in float32
    for text in ("dense", "0.3", "0.6/0/0.2,0.4,0.5/0"):
        sparsity = Sparsity.of(text, model.backbone.depths)
        one, other = fast.metrics(sparsity), plain.metrics(sparsity)
        for key in ("bbox_mAP", "segm_mAP"):
            assert one[key] == pytest.approx(other[key], abs=0.01)
