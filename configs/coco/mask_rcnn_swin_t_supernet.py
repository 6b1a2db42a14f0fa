# Mask R-CNN, Swin-T, COCO: the adapted detector as a search uses it, and as an exported config finetunes it.
_base_ = "mask_rcnn_swin_t_dense.py"
