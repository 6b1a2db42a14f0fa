"""The backbone under the name and arguments that mmdet configs use: `backbone=dict(type="SparseViT", ...)`."""

from __future__ import annotations

from typing import Any

from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES

from sparsevit.errors import UserError
from sparsevit.model.backbone import SparseSwin
from sparsevit.openmmlab.weights import load_backbone_weights


@BACKBONES.register_module()
class SparseViT(SparseSwin, BaseModule):  # type: ignore[misc]  # mmcv is untyped
    """`SparseSwin` with the remaining arguments of mmdet 2.x's `SwinTransformer`.

    Args:
        strides, act_cfg, norm_cfg: as Swin has them; other values are refused.
        pretrained: a checkpoint file of backbone weights with mmdet's, the original Swin's or timm's keys; the same as
            `init_cfg=dict(type="Pretrained", checkpoint=…)`.
        convert_weights: accepted and not needed: which format the keys are in is seen from them.

    Raises:
        UserError: for an argument that asks for another architecture.
    """

    def __init__(
        self,
        *,
        strides: tuple[int, ...] = (4, 2, 2, 2),
        act_cfg: dict[str, Any] | None = None,
        norm_cfg: dict[str, Any] | None = None,
        pretrained: str | None = None,
        convert_weights: bool = False,
        init_cfg: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if strides[0] != arguments.get("patch_size", 4) or any(stride != 2 for stride in strides[1:]):
            raise UserError(f"SparseViT strides must be the patch size and then 2, got {tuple(strides)}")
        if (act_cfg or {}).get("type", "GELU") != "GELU" or (norm_cfg or {}).get("type", "LN") != "LN":
            raise UserError("SparseViT has GELU activations and LayerNorm; act_cfg and norm_cfg cannot change that")
        if pretrained and init_cfg:
            raise UserError("give either pretrained or init_cfg for the backbone, not both")
        if (init_cfg or {}).get("type", "Pretrained") != "Pretrained":
            raise UserError("the backbone's init_cfg can only be of type Pretrained; by itself it starts as Swin does")
        SparseSwin.__init__(self, **arguments)
        self.init_cfg = dict(type="Pretrained", checkpoint=pretrained) if pretrained else init_cfg

    def init_weights(self) -> None:
        """Swin's initialisation, then the weights that `init_cfg` names, of a backbone or of a detector.

        Raises:
            UserError: if they are not this backbone's.
        """
        SparseSwin.init_weights(self)
        init = getattr(self, "init_cfg", None)  # not there yet when SparseSwin's constructor calls this
        if init:
            load_backbone_weights(self, init["checkpoint"])

    def train(self, mode: bool = True) -> SparseViT:
        SparseSwin.train(self, mode)
        return self
