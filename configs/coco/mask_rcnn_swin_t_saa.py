# Mask R-CNN, Swin-T, COCO: Sparsity-Aware Adaptation of the dense detector's weights.
#   sparsevit adapt CONFIG DENSE_CHECKPOINT
_base_ = "mask_rcnn_swin_t_dense.py"

random_sample = True  # a fresh sparsity each iteration; validation has those below
optimizer = dict(lr=1e-5)
# The paper names rate and epochs; the steps are those of mmdet's schedule of 12 epochs.
lr_config = dict(step=[8, 11])
runner = dict(max_epochs=12)
evaluate_sparsities = dict(
    interval=4,
    sparsities={
        "dense": None,
        "cfg1": [[0.3], [0], [0.1, 0.2, 0.2], [0]],
        "cfg2": [[0.6], [0], [0.2, 0.4, 0.5], [0]],
        "cfg3": [[0.7], [0], [0.2, 0.4, 0.5], [0]],
    },
)
