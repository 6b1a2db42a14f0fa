# Mask R-CNN, Swin-T, COCO: the dense detector, from a backbone trained on ImageNet. Name its weights:
#   sparsevit finetune CONFIG --cfg-options model.backbone.pretrained=swin_tiny_patch4_window7_224.pth
_base_ = ["_base_/mask_rcnn.py", "_base_/instances.py", "_base_/runtime.py"]
