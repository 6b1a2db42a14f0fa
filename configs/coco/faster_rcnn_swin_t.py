# Faster R-CNN, Swin-T, COCO: Mask R-CNN without masks.
_base_ = ["_base_/mask_rcnn.py", "_base_/boxes.py", "_base_/runtime.py"]

model = dict(type="FasterRCNN", roi_head=dict(mask_roi_extractor=None, mask_head=None))
