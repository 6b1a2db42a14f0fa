# First stage of the built-in supernet: dense training from scratch.
_base_ = "mask_rcnn.py"

data = dict(train=dict(images=40960, crowd=(5, 14, 0.28, 1.0)))
runner = dict(max_epochs=10)
evaluate_sparsities = dict(interval=3, images=60, sparsities={"dense": None}, _delete_=True)
