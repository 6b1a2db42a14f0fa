"""A deployed file computes what the backbone does, says where it comes from, and is not kept if it is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsevit.deployment import deploy
from sparsevit.deployment.verification import TRIES, compare
from sparsevit.errors import MissingExtraError, UserError
from sparsevit.model import SparseSwin

SIZE = (60, 84)
SPARSITY = "0.3/0.2,0.6"
METADATA = {"sparsity": SPARSITY, "checkpoint_sha256": "ab12", "odd": 'quotes " and\nlines'}


def backbone(**arguments: Any) -> SparseSwin:
    """Small, with weights that make every part matter."""
    settings = {"embed_dims": 8, "depths": (2, 3), "num_heads": (1, 2), "window_size": 4, "out_indices": (0, 1)}
    torch.manual_seed(0)
    model = SparseSwin(**(settings | {"pruning_ratios": SPARSITY} | arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def outputs(path: Path, images: Tensor) -> Sequence[Tensor]:
    """What users' own code makes of the file."""
    if path.suffix == ".pt2":
        program = torch.export.load(path)
        # Nothing but torch's own operations, so it runs without this package.
        called = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert {target.namespace for target in called if isinstance(target, torch._ops.OpOverload)} == {"aten"}
        return list(program.module()(images))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(each) for each in session.run(None, {"image": images.numpy()})]


def metadata(path: Path) -> dict[str, str]:
    if path.suffix == ".pt2":
        extra = {"sparsevit.json": ""}
        torch.export.load(path, extra_files=extra)
        found: dict[str, str] = json.loads(extra["sparsevit.json"])
        return found
    import onnx

    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    return {key.removeprefix("sparsevit."): value for key, value in properties.items() if key.startswith("sparsevit.")}


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("batch", "arguments"),
    [
        (None, {}),
        (2, {"pad_before_norm": False, "use_abs_pos_embed": True, "with_cp": True}),
        (1, {"pruning_ratios": None, "out_indices": (1,)}),
    ],
    ids=["open batch, padding", "padding after the norm, positions", "dense"],
)
def test_the_file_computes_what_the_backbone_does(
    tmp_path: Path, suffix: str, batch: int | None, arguments: dict[str, Any]
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = backbone(**arguments)
    path = tmp_path / f"subnet{suffix}"
    made = deploy(model, path, SIZE, batch, METADATA)
    assert made.path == path
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert metadata(path) == METADATA
    assert 0 <= made.difference.relative < 1e-4
    for count in (1, 2, 5) if batch is None else (batch,):
        images = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            wanted = model(images)
        found = outputs(path, images)
        assert [each.shape[1:] for each in found] == list(made.maps)
        for got, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-4)


def test_the_backbone_stays_as_it_was(tmp_path: Path) -> None:
    model = backbone().train()
    deploy(model, tmp_path / "subnet.pt2", SIZE, 1, {})
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_file_that_is_wrong_is_not_kept(tmp_path: Path) -> None:
    model = backbone()
    with torch.no_grad():
        model.norm1.weight.fill_(float("nan"))
    path = tmp_path / "subnet.pt2"
    path.write_text("the one before")
    with pytest.raises(UserError, match=r"subnet\.pt2 is not written: for 1 images its output differs"):
        deploy(model, path, SIZE, 1, {})
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "the one before"


class Counting(nn.Module):
    """A backbone that is wrong on its first `wrong` passes: there it prunes differently."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.model, self.passes, self.wrong = backbone(), 0, wrong

    def forward(self, images: Tensor) -> list[Tensor]:
        self.passes += 1
        self.model.sparsity = "0.6" if self.passes <= self.wrong else SPARSITY
        with torch.no_grad():
            return list(self.model(images))


def test_a_tie_is_no_error_and_a_wrong_sparsity_is_one() -> None:
    model, path = backbone().requires_grad_(False), Path("subnet.pt2")
    run = Counting(wrong=TRIES - 1)
    assert compare(run, model, SIZE, [1], path).largest == 0
    assert run.passes == TRIES
    with pytest.raises(UserError, match="differs from the backbone's by"):
        compare(Counting(wrong=TRIES), model, SIZE, [1], path)


def test_what_cannot_be_written_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as error:
            deploy(backbone(), path, SIZE, 1, {})
        assert "\n" not in str(error.value)
        return str(error.value)

    monkeypatch.setattr(torch.export, "export", None)
    assert "end it in .onnx or .pt2" in refusal(tmp_path / "subnet.pth")
    assert "cannot write to " in refusal(tmp_path / "gone" / "subnet.pt2")
    (tmp_path / "taken.pt2").mkdir()
    assert "taken.pt2: it is a folder" in refusal(tmp_path / "taken.pt2")
    monkeypatch.setattr("sparsevit.deployment.onnx_file.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsevit\[deploy\]'"):
        deploy(backbone(), tmp_path / "subnet.onnx", SIZE, 1, {})
    assert [each.name for each in tmp_path.iterdir()] == ["taken.pt2"]
