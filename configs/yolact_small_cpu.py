"""A small YOLACT at 256 px that learns from random weights on a CPU, to start your own data with.

Its defaults are COCO's classes and paths. docs/custom_data.md has the command for other datasets,
with options such as --config.model.num_classes=3. The training takes 3,000 steps of 8 images; a
step took 1.2 to 2.7 s on two CPU cores that other programs used, too.

    python train.py --config configs/yolact_small_cpu.py
"""

from jaxseg.config import AugmentConfig, Config, override
from jaxseg.models import BackboneConfig, YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "yolact_small_cpu",
            "model.image_size": 256,
            "model.backbone": BackboneConfig(stage_sizes=(1, 1, 2, 1), width=32),
            "model.fpn_channels": 64,
            "model.head_channels": 64,
            "model.prototype_channels": 64,
            "model.num_prototypes": 16,
            "model.anchor_scales": ((10,), (22,), (45,), (90,), (180,)),
            "model.square_anchors": False,
            "model.losses.max_mask_positives": 50,
            "data.workers": 1,
            # Expansion makes objects up to four times smaller; at 256 px they are small already.
            "data.augment": AugmentConfig(expand=False),
            "train.batch_size": 8,
            "train.steps": 3000,
            "train.optimizer": "adamw",
            "train.learning_rate": 1e-3,
            "train.weight_decay": 1e-4,
            "train.schedule": "cosine",
            "train.warmup_steps": 200,
            "train.checkpoint_every": 500,
            "train.evaluate_every": 1000,
            "train.evaluate_images": 200,
        },
    )
