# Mask R-CNN, Swin-B, COCO: the dense detector; started like Swin-T's.
_base_ = "mask_rcnn_swin_s_dense.py"

model = dict(
    backbone=dict(embed_dims=128, num_heads=(4, 8, 16, 32), drop_path_rate=0.3),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
