"""A small YOLACT that learns synthetic shapes from nothing, in minutes on two CPU cores.

The dataset is written to data/shapes at the first start.

    python train.py --config configs/demo_shapes.py
"""

from jaxseg.config import BackboneConfig, Config, override


def get_config() -> Config:
    return override(
        Config(),
        {
            "name": "demo_shapes",
            "model.num_classes": 4,
            "model.image_size": 128,
            "model.backbone": BackboneConfig(stage_sizes=(1, 1, 1, 1), width=16),
            "model.fpn_channels": 64,
            "model.head_channels": 64,
            "model.prototype_channels": 64,
            "model.num_prototypes": 16,
            "model.anchor_scales": ((12,), (24,), (48,), (96,), (128,)),
            "model.square_anchors": False,
            "data.root": "data/shapes",
            "data.synthetic": True,
            "data.max_objects": 12,
            "data.workers": 1,
            "train.batch_size": 8,
            "train.steps": 1000,
            "train.learning_rate": 1e-2,
            "train.schedule": "cosine",
            "train.warmup_steps": 50,
            "train.checkpoint_every": 500,
        },
    )
