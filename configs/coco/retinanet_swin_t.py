# RetinaNet, Swin-T, COCO: a detector of one step.
_base_ = ["_base_/retinanet.py", "_base_/boxes.py", "_base_/runtime.py"]
