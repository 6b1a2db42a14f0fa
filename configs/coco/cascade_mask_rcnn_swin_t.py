# Cascade Mask R-CNN, Swin-T, COCO: dense, adapted and finetuned as Mask R-CNN is.
_base_ = ["_base_/cascade_mask_rcnn.py", "_base_/instances.py", "_base_/runtime.py"]
