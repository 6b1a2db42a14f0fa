"""The SparseViT backbone: Swin whose layers skip their least active windows (Chen et al., CVPR 2023).

B batch, H W height and width in tokens, T tokens (H*W), C channels. State-dict keys are those of mmdet 2.x's
`SwinTransformer`; at ratio 0 the two compute the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsevit.errors import UserError
from sparsevit.model.block import SwinBlock, WindowAttention
from sparsevit.model.windows import rank_windows, token_magnitude, window_table
from sparsevit.sparsity import Sparsity, kept_windows


class PatchEmbed(nn.Module):
    """Cuts an image into patches: `(B, 3, h, w)` to `(B, T, C)`, padded at the bottom and right."""

    def __init__(self, in_channels: int, channels: int, patch: int, norm: bool) -> None:
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv2d(in_channels, channels, patch, patch)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        height, width = image.shape[-2:]
        right, bottom = -width % self.patch, -height % self.patch
        if right or bottom:  # padding by nothing would still copy
            image = F.pad(image, (0, right, 0, bottom))
        x = self.projection(image)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class PatchMerging(nn.Module):
    """Joins 2 x 2 tokens: `(B, H*W, C)` to `(B, ceil(H/2)*ceil(W/2), 2C)`."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels) if norm else nn.Identity()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x_BTC: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        batch, _, channels = x_BTC.shape
        height, width = size
        x = x_BTC.view(batch, height, width, channels)
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = x.view(batch, height, 2, width, 2, channels)
        # Channel first, then row, then column of the 2 x 2 patch: nn.Unfold's order, which mmdet 2.x's weights are in.
        x = x.permute(0, 1, 3, 5, 2, 4).reshape(batch, height * width, 4 * channels)
        return self.reduction(self.norm(x)), (height, width)


class Stage(nn.Module):
    """Blocks at one resolution, alternating plain and shifted windows, that share one ranking of windows."""

    def __init__(self, blocks: Sequence[SwinBlock], window: int, downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.window = window
        self.downsample = downsample

    def forward(self, x_BTC: Tensor, size: tuple[int, int], ratios: Sequence[Decimal]) -> Tensor:
        """All blocks of the stage under one ratio per layer, before downsampling. May overwrite its input."""
        tokens = x_BTC.shape[1]
        tables = [window_table(*size, self.window, shift, x_BTC.device) for shift in (0, self.window // 2)]
        if tables[0].padded:
            x_BTC = F.pad(x_BTC, (0, 0, 0, 1))  # a spare row per image, which padded positions read and write
        elif not x_BTC.is_contiguous():
            x_BTC = x_BTC.contiguous()
        rankings: list[Tensor] | None = None
        for number, block in enumerate(self.blocks):
            table, kept = tables[number % 2], None
            count = kept_windows(table.windows, ratios[number // 2])
            if count < table.windows:  # any ratio above 0, unless there is but one window
                if rankings is None:  # once a stage, on the input of its first sparse block
                    magnitude = token_magnitude(x_BTC[:, :tokens])
                    rankings = [rank_windows(magnitude, each) for each in tables]
                kept = rankings[number % 2][:, :count]
            x_BTC = block(x_BTC, table, kept)
        return x_BTC[:, :tokens]


class SparseSwin(nn.Module):
    """Swin Transformer with a pruning ratio per layer.

    Arguments are those of mmdet 2.x's `SwinTransformer`, and two more:

    Args:
        pruning_ratios: the sparsity to start with, in any form that `Sparsity.of` accepts; None is dense.
        pad_before_norm: where the map is no multiple of the window, pad before each block's first norm, as SparseViT
            was trained, or (False) after it, as Swin was. The two agree where nothing is padded.

    Raises:
        UserError: if sizes or numbers of stages do not fit together, or the sparsity does not fit the depths.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        embed_dims: int = 96,
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: float = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        pretrain_img_size: int | Sequence[int] = 224,
        use_abs_pos_embed: bool = False,
        with_cp: bool = False,
        frozen_stages: int = -1,
        pruning_ratios: Any = None,
        pad_before_norm: bool = True,
    ) -> None:
        super().__init__()
        if len(num_heads) != len(depths):
            raise UserError(f"num_heads {tuple(num_heads)} and depths {tuple(depths)} differ in their number of stages")
        if any(not 0 <= i < len(depths) for i in out_indices):
            raise UserError(f"out_indices {tuple(out_indices)} must be stages from 0 to {len(depths) - 1}")
        if frozen_stages > len(depths):
            raise UserError(f"frozen_stages is {frozen_stages}, but there are {len(depths)} stages")
        self.depths = tuple(depths)
        self.window_size = window_size
        self.patch_size = patch_size
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.num_features = [embed_dims * 2**i for i in range(len(depths))]
        for channels, heads in zip(self.num_features, num_heads, strict=True):
            if channels % heads:
                raise UserError(f"num_heads {heads} does not divide the {channels} channels of its stage")

        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, patch_norm)
        if use_abs_pos_embed:
            sides = (pretrain_img_size,) * 2 if isinstance(pretrain_img_size, int) else tuple(pretrain_img_size)
            grid = [side // patch_size for side in (sides * 2)[:2]]
            self.absolute_pos_embed: nn.Parameter | None = nn.Parameter(torch.zeros(1, embed_dims, *grid))
        else:
            self.absolute_pos_embed = None
        self.drop_after_pos = nn.Dropout(drop_rate)

        last = max(sum(depths) - 1, 1)
        drop_paths = [drop_path_rate * i / last for i in range(sum(depths))]
        self.stages = nn.ModuleList()
        for number, (channels, depth, heads) in enumerate(zip(self.num_features, depths, num_heads, strict=True)):
            blocks = [
                SwinBlock(
                    channels,
                    heads,
                    window=window_size,
                    shift=window_size // 2 if i % 2 else 0,
                    hidden=int(mlp_ratio * channels),
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_paths.pop(0),
                    pad_before_norm=pad_before_norm,
                    with_cp=with_cp,
                )
                for i in range(depth)
            ]
            downsample = PatchMerging(channels, patch_norm) if number < len(depths) - 1 else None
            self.stages.append(Stage(blocks, window_size, downsample))
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(self.num_features[i]))
        self.sparsity = pruning_ratios
        self.init_weights()
        self._freeze()

    @property
    def sparsity(self) -> Sparsity:
        """The active sparsity. Setting it takes any form that `Sparsity.of` accepts and costs nothing."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: Any) -> None:
        self._sparsity = Sparsity.of(value, self.depths)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps `(B, C, H, W)` of the stages in `out_indices`, for images of shape `(B, 3, h, w)`."""
        x, size = self.patch_embed(image)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, size=size, mode="bicubic", align_corners=False)
            x = x + position.flatten(2).transpose(1, 2)
        x = self.drop_after_pos(x)
        outs = []
        for i, ratios in enumerate(self.sparsity.stages):
            stage = cast(Stage, self.stages[i])
            x = stage(x, size, ratios)
            if i in self.out_indices:
                normed = getattr(self, f"norm{i}")(x)
                # Channels stay last in memory, as convolutions on GPUs want them.
                outs.append(normed.view(x.shape[0], *size, -1).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x, size = stage.downsample(x, size)
        return tuple(outs)

    def init_weights(self) -> None:
        """Swin's initialisation: truncated normal (std 0.02) for linear layers and bias tables."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def train(self, mode: bool = True) -> SparseSwin:
        """Switch modes, keeping the patch embedding and the first `frozen_stages` stages frozen."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen: list[nn.Module] = [self.patch_embed, self.drop_after_pos]
        for i in range(self.frozen_stages):
            frozen.append(self.stages[i])
            if i in self.out_indices:
                frozen.append(getattr(self, f"norm{i}"))
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
