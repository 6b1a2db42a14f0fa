# Mask R-CNN, Swin-S, COCO: the dense detector; started like Swin-T's.
_base_ = "mask_rcnn_swin_t_dense.py"

model = dict(backbone=dict(depths=(2, 2, 18, 2)))
