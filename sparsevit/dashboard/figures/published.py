"""The paper's results (arXiv 2303.17605), and whether a study is of the same, so that they may be drawn beside it.

They are of subnets finetuned for 36 epochs; a search's own are of the supernet's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsevit.errors import UserError
from sparsevit.latency.target import Target
from sparsevit.search.results import StudyResults
from sparsevit.sparsity import Sparsity


@dataclass(frozen=True)
class Published:
    """A configuration with its latency (ms: mean of the middle half of 500 passes) and its metrics (fractions)."""

    label: str
    sparsity: Sparsity
    ms: float
    accuracy: Mapping[str, float]


PUBLISHED = tuple(
    Published(f"paper: {name}", Sparsity.parse(sparsity), ms, {"bbox_mAP": box, "segm_mAP": mask})
    for name, sparsity, ms, box, mask in (
        ("dense", "0/0/0,0,0/0", 47.8, 0.426, 0.388),
        ("cfg1", "0.3/0/0.1,0.2,0.2/0", 41.3, 0.424, 0.385),
        ("cfg2", "0.6/0/0.2,0.4,0.5/0", 34.2, 0.416, 0.377),
        ("cfg3", "0.7/0/0.2,0.4,0.5/0", 32.9, 0.413, 0.374),
    )
)
IMAGES = 5000
"""All of COCO val2017."""

_TARGET = Target(device="cuda:0", threads=1, dtype="float32", batch=4, size=(672, 672), engine="eager")


def unlike_paper(results: StudyResults) -> str:
    """The first thing that the paper's figures are of and this study's are not; empty where they compare."""
    known = results.provenance
    try:
        target = Target.parse(results.target)
    except UserError:
        return "another kind of target"
    same = {
        "bbox mAP or mask mAP": results.metric in PUBLISHED[0].accuracy,
        "Mask R-CNN": known.get("supernet.detector") == "MaskRCNN",
        "Swin-T": known.get("supernet.channels") == "96" and len(results.layer_names) == 6,
        "COCO val2017": known.get("supernet.data") == f"instances_val2017.json, {IMAGES} images of 80 classes",
        "an NVIDIA RTX A6000": known.get("environment.device", "").endswith("RTX A6000"),
        "float32 without TF32": target.dtype == "float32" and known.get("environment.matmul") == "highest",
        **{
            text: getattr(target, name) == getattr(_TARGET, name)
            for name, text in (
                ("batch", "batch 4"), ("size", "672x672"), ("engine", "eager execution"), ("scope", "the backbone"),
            )
        },
    }  # fmt: skip
    return next((text for text, holds in same.items() if not holds), "")
