# Mask R-CNN, Swin-S, COCO: the adapted detector as a search uses it, and as an exported config finetunes it.
_base_ = "mask_rcnn_swin_s_dense.py"
