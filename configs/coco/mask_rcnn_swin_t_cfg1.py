# Mask R-CNN, Swin-T, COCO: the paper's cfg1, finetuned from the supernet's weights. The paper reports 41.3 ms instead
# of 47.8 at batch 4 on an RTX A6000, 42.4 box AP and 38.5 mask AP instead of 42.6 and 38.8.
#   sparsevit finetune CONFIG --cfg-options load_from=SUPERNET_CHECKPOINT
_base_ = "mask_rcnn_swin_t_dense.py"

ratios = [[0.3], [0], [0.1, 0.2, 0.2], [0]]
model = dict(backbone=dict(pruning_ratios=ratios))
evaluate_sparsities = dict(sparsities=dict(_delete_=True, cfg1=ratios))
