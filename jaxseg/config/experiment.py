"""An experiment: model, data, training, evaluation; its files with a `get_config()`, and dotted overrides.

A config file is short: it says how an experiment differs from the defaults below, which are YOLACT-base
(ResNet-101 at 550 px on COCO) as dbolya/yolact trains it.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxseg.classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from jaxseg.config.models import YolactConfig
from jaxseg.config.rcnn import RcnnConfig, RetinaNetConfig
from jaxseg.config.values import from_dict, replace_key, require
from jaxseg.errors import ConfigError, shortened
from jaxseg.files import read_json

ModelConfig = YolactConfig | RcnnConfig | RetinaNetConfig

# Steps are counted in 32 bits, and seeds have as many.
MAX_STEPS = 2**31 - 1
MAX_SEED = 2**32 - 1
# Of one host; more is a typing error.
MAX_WORKERS = 1024

# The folder that holds the jaxseg package.
REPOSITORY = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The original's training augmentation, step by step; each step can be left out."""

    photometric: bool = True
    expand: bool = True
    crop: bool = True
    mirror: bool = True


# What the R-CNN family does.
MIRROR_ONLY = AugmentConfig(photometric=False, expand=False, crop=False)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A dataset in COCO's layout. Paths are relative to `root` unless absolute."""

    # "": $JAXSEG_DATA, or data/coco where that is not set.
    root: str = ""
    # "coco": images and a JSON; "tfds": array_record shards made by the builder `coco_instances`.
    format: Literal["coco", "tfds"] = "coco"
    # Write the synthetic shapes to root if they are not there (the demo).
    synthetic: bool = False
    train_annotations: str = "annotations/instances_train2017.json"
    train_images: str = "train2017"
    val_annotations: str = "annotations/instances_val2017.json"
    val_images: str = "val2017"
    # In ascending order of category id, as many as model.num_classes; empty: read from the training annotations.
    class_names: tuple[str, ...] = COCO_CLASS_NAMES
    category_ids: tuple[int, ...] = COCO_CATEGORY_IDS
    # Rows of ground truth an image is padded to; objects beyond it (smallest first to go) are left out and counted.
    max_objects: int = 100
    # Train on images without objects, too (see losses.negatives_without_positives).
    keep_empty: bool = False
    # Use the first so many images of each split, 0: all. A model should be able to learn 8 images by heart.
    limit_images: int = 0
    # Worker processes that decode and augment; 0 does it in the training process.
    workers: int = 4
    augment: AugmentConfig = AugmentConfig()

    def validate(self, key: str) -> None:
        require(self.max_objects >= 1, f"{key}.max_objects", self.max_objects, "at least 1")
        require(0 <= self.workers <= MAX_WORKERS, f"{key}.workers", self.workers, f"0 to {MAX_WORKERS} processes")
        require(self.limit_images >= 0, f"{key}.limit_images", self.limit_images, "0 or more")
        repeated = [name for name, count in collections.Counter(self.class_names).items() if count > 1]
        require(not repeated, f"{key}.class_names", self.class_names, f"distinct names; {shortened(repeated)} stands there more than once")
        require(
            len(self.class_names) == len(self.category_ids),
            f"{key}.category_ids",
            self.category_ids,
            f"as many ids as class_names, {len(self.class_names)}",
        )
        require(
            list(self.category_ids) == sorted(set(self.category_ids)),
            f"{key}.category_ids",
            self.category_ids,
            "distinct ids in ascending order",
        )


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """What a run starts from when its folder holds no checkpoint."""

    # A file of weights, or another run's folder: of the whole detector, or of its backbone only. "": nothing.
    weights: str = ""
    # Parameters of another shape in the weights start fresh, as the head does for other classes; else they are an error.
    skip_mismatched: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation and bookkeeping. Rates and steps are for a batch of `autoscale_batch_size` images."""

    seed: int = 0
    batch_size: int = 8
    steps: int = 800_000
    # Above 0: passes over the training images, for any batch size; `steps` and `decay_steps` are not looked at then.
    epochs: int = 0
    decay_epochs: tuple[int, ...] = ()
    # "adamw" for training small models from nothing; the rate wants to be lower, about 1e-3.
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    # On every trained parameter, biases and norms included, unless the next two say otherwise.
    weight_decay: float = 5e-4
    decay_biases: bool = True
    decay_norms: bool = True
    # Biases, those of norms included, learn so many times as fast; 2 in maskrcnn-benchmark.
    bias_rate_factor: float = 1.0
    schedule: Literal["steps", "cosine"] = "steps"
    decay_steps: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    decay_factor: float = 0.1
    warmup_steps: int = 500
    warmup_learning_rate: float = 1e-4
    # Above 0: warm-up starts at this part of the learning rate, whatever that is, instead of at warmup_learning_rate.
    warmup_factor: float = 0.0
    # Multiply the rate and divide the steps by batch_size / 8 when that is not 1; 0 switches it off.
    autoscale_batch_size: int = 8
    # False: the steps are meant as they stand, only the rate is scaled. So when they come from the command line.
    autoscale_steps: bool = True
    # Global norm of the gradient; 0: no clipping.
    clip_norm: float = 0.0
    # 0: no moving average of the parameters; else its decay a step, say 0.9998. Evaluation then uses the average.
    ema_decay: float = 0.0
    # Steps with a loss that is not finite are skipped; this many in a row end the training.
    max_skipped_steps: int = 20
    log_every: int = 10
    checkpoint_every: int = 10_000
    # How many of the last checkpoints to keep, beside the best one by mask AP (box AP of a detector without masks).
    keep_checkpoints: int = 3
    # 0: no evaluation during training.
    evaluate_every: int = 0
    # Images a validation during training looks at; 0: all.
    evaluate_images: int = 0
    # Validation images drawn with their detections at each evaluation.
    draw_images: int = 4

    def validate(self, key: str) -> None:
        for name in ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "max_skipped_steps"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        require(1 <= self.steps <= MAX_STEPS, f"{key}.steps", self.steps, f"at least 1 and at most {MAX_STEPS}")
        require(0 <= self.seed <= MAX_SEED, f"{key}.seed", self.seed, f"0 or more and at most {MAX_SEED}")
        for name in ("warmup_steps", "epochs"):
            require(0 <= getattr(self, name) <= MAX_STEPS, f"{key}.{name}", getattr(self, name), f"0 or more and at most {MAX_STEPS}")
        for name in ("weight_decay", "warmup_learning_rate", "autoscale_batch_size", "clip_norm"):
            require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        for name in ("evaluate_every", "evaluate_images", "draw_images"):
            require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        for name in ("learning_rate", "bias_rate_factor"):
            require(getattr(self, name) > 0, f"{key}.{name}", getattr(self, name), "above 0")
        for name in ("warmup_factor", "decay_factor"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("momentum", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"{key}.{name}", getattr(self, name), "at least 0 and under 1")
        require(
            list(self.decay_steps) == sorted(set(self.decay_steps)) and all(0 <= step <= MAX_STEPS for step in self.decay_steps),
            f"{key}.decay_steps",
            self.decay_steps,
            f"distinct steps in ascending order, from 0 to {MAX_STEPS}",
        )
        within = all(0 < epoch < self.epochs for epoch in self.decay_epochs)
        require(
            within and list(self.decay_epochs) == sorted(set(self.decay_epochs)),
            f"{key}.decay_epochs",
            self.decay_epochs,
            f"distinct epochs in ascending order, each before the last of {key}.epochs = {self.epochs}"
            if self.epochs
            else f"empty where {key}.epochs is 0; decay_steps go with steps",
        )


# maskrcnn-benchmark's "1x".
RCNN_1X = TrainConfig(
    batch_size=16,
    autoscale_batch_size=16,
    steps=90_000,
    learning_rate=0.02,
    weight_decay=1e-4,
    decay_biases=False,
    bias_rate_factor=2.0,
    decay_steps=(60_000, 80_000),
    warmup_steps=500,
    warmup_factor=1 / 3,
)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    batch_size: int = 8

    def validate(self, key: str) -> None:
        require(self.batch_size >= 1, f"{key}.batch_size", self.batch_size, "at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run needs. `name` is also the default of the work folder, runs/<name>."""

    name: str = "yolact_r101"
    model: ModelConfig = YolactConfig()
    data: DataConfig = DataConfig()
    init: InitConfig = InitConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    def validate(self, key: str = "config") -> None:
        for name in ("model", "data", "train", "eval"):
            getattr(self, name).validate(f"{key}.{name}")
        named = len(self.data.class_names)
        require(
            named in (0, self.model.num_classes),
            f"{key}.model.num_classes",
            self.model.num_classes,
            f"as many as data.class_names, {named} (or empty data.class_names, to read them from the annotations)",
        )
        if self.model.kind != "yolact":
            for name in ("expand", "crop"):
                given = getattr(self.data.augment, name)
                require(
                    not given, f"{key}.data.augment.{name}", given, f"False for {self.model.kind}, which keeps the picture's proportions"
                )


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a config and applies dotted overrides.

    Args:
        path: a Python file with `get_config()`, or a `config.json` that a run has saved. A relative path is looked
            up from the working folder, then from the folder that holds the jaxseg package.
        overrides: for instance `{"model.num_classes": 3, "train.batch_size": "16"}`; text is parsed by the field's type.
            A `train.steps` given here is meant literally and switches `train.autoscale_steps` and `train.epochs` off.

    Raises:
        ConfigError: naming the file or key, what is wrong, and what would be right.
    """
    path = Path(path)
    found = next((p for p in (path, REPOSITORY / path) if p.is_file()), None)
    if found is None:
        near = sorted(p.name for p in (path.parent if path.parent.is_dir() else REPOSITORY / "configs").glob("*.py"))
        raise ConfigError(f"There is no config file {path}; the files beside it are: {', '.join(near) or 'none'}.")
    if found.suffix == ".json":
        content = read_json(found, ConfigError)
        if not isinstance(content, Mapping):
            raise ConfigError(f"{found} holds a {type(content).__name__}; a saved configuration is an object with keys and values.")
        config = from_dict(Config, content)
    else:
        config = _run_config_file(found)
    overrides = dict(overrides or {})
    if "train.steps" in overrides:
        if "train.epochs" in overrides:
            raise ConfigError("train.steps and train.epochs both say how long to train; give one of them.")
        overrides = {"train.autoscale_steps": False, "train.epochs": 0, "train.decay_epochs": ()} | overrides
    return override(config, overrides)


def _run_config_file(path: Path) -> Config:
    spec = importlib.util.spec_from_file_location(f"jaxseg_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a config is a .py file with get_config(), or a saved config.json.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config() that returns a jaxseg.config.Config.")
    config = module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() of {path} returned a {type(config).__name__}, not a jaxseg.config.Config.")
    return config


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy of `config` with dotted keys replaced, checked as a whole.

    Raises:
        ConfigError: for an unknown key (says which keys there are), a wrong type, or a value out of range.
    """
    for key, value in overrides.items():
        config = replace_key(config, key.split("."), value, key)
    names_given = "data.class_names" in overrides or len(config.data.class_names) == config.model.num_classes
    if "model.num_classes" in overrides and not names_given:
        # Another number of classes is another dataset: its names come from its annotations.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, class_names=(), category_ids=()))
    config.validate()
    return config


def parse_config_flags(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Splits `--config.a.b=value` (or `--config.a.b value`) from the other arguments.

    Raises:
        ConfigError: for a flag without a value.
    """
    overrides: dict[str, str] = {}
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--config."):
            others.append(argument)
            continue
        key, has_value, value = argument.removeprefix("--config.").partition("=")
        value = value if has_value else next(rest, "--")
        if not has_value and value.startswith("--"):
            raise ConfigError(f"--config.{key} has no value; write --config.{key}=VALUE.")
        overrides[key] = value
    return overrides, others
