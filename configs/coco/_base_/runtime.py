# How Swin detectors are trained in mmdet 2.x: 36 epochs on 8 GPUs with 2 images each.
optimizer = dict(
    type="AdamW",
    lr=1e-4,  # for 16 images an iteration; auto_scale_lr.enable=true scales it with their number
    betas=(0.9, 0.999),
    weight_decay=0.05,
    paramwise_cfg=dict(
        custom_keys={
            "absolute_pos_embed": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
        }
    ),
)
optimizer_config = dict(grad_clip=None)
auto_scale_lr = dict(enable=False, base_batch_size=16)
lr_config = dict(policy="step", warmup="linear", warmup_iters=1000, warmup_ratio=0.001, step=[27, 33])
runner = dict(type="EpochBasedRunner", max_epochs=36)
checkpoint_config = dict(interval=1, max_keep_ckpts=2)
log_config = dict(interval=50, hooks=[dict(type="TextLoggerHook")])
evaluate_sparsities = dict(interval=12, batch=8, sparsities={"dense": None})
autocast = "bfloat16"  # on a GPU
load_from = None
