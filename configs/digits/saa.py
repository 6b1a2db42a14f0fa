# Second stage of the built-in supernet: Sparsity-Aware Adaptation of the dense weights.
_base_ = "mask_rcnn.py"

data = dict(train=dict(images=40960, crowd=(5, 14, 0.28, 1.0), seed=2))
optimizer = dict(lr=5e-4)
runner = dict(max_epochs=9)
custom_hooks = [dict(type="SparsityAdaptation", seed=0)]
evaluate_sparsities = dict(interval=4, images=60)
lr_config = dict(warmup_iters=100)
