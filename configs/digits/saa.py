# Second stage of the built-in supernet: Sparsity-Aware Adaptation of the dense weights.
_base_ = "mask_rcnn.py"

data = dict(train=dict(images=40960, seed=2))
optimizer = dict(lr=4e-4)
runner = dict(max_epochs=5)
custom_hooks = [dict(type="SparsityAdaptation", seed=0)]
evaluate_sparsities = dict(interval=5, images=60)
