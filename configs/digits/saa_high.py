# Third stage of the built-in supernet: adaptation goes on, in scenes with as many digits as those of the validation set
# and with more of the high ratios, at which accuracy is hardest to keep.
_base_ = "mask_rcnn.py"

data = dict(train=dict(images=49152, seed=4, crowd=(3, 8, 0.22, 1.0)))
optimizer = dict(lr=2.5e-4)
runner = dict(max_epochs=3)
custom_hooks = [dict(type="SparsityAdaptation", ratios=[0, 0.3, 0.5, 0.6, 0.7, 0.8], seed=1)]
evaluate_sparsities = None  # the model card follows
lr_config = dict(warmup_iters=60)
