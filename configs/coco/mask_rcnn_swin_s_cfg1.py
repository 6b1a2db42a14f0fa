# Mask R-CNN, Swin-S, COCO: the ratios of the paper's cfg1, which is Swin-T's. Its three layers of stage 3 are
# stretched over the nine that Swin-S has, each ratio three times. The paper has no figures for it: a place to start,
# not a result.
#   sparsevit finetune CONFIG --cfg-options load_from=SUPERNET_CHECKPOINT
_base_ = "mask_rcnn_swin_s_dense.py"

ratios = [[0.3], [0], [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], [0]]
model = dict(backbone=dict(pruning_ratios=ratios))
evaluate_sparsities = dict(sparsities=dict(_delete_=True, cfg1=ratios))
