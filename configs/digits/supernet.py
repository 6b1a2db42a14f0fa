# The built-in supernet as a search uses it and as an exported finetune config inherits it: model, data, a short
# schedule.
_base_ = "mask_rcnn.py"

data = dict(samples_per_gpu=16, train=dict(images=8192, seed=3))
optimizer = dict(lr=2e-4)
lr_config = dict(warmup_iters=50)
runner = dict(max_epochs=3)
