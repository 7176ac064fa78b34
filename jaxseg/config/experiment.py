"""The configuration of an experiment: its dataclasses, its files, and overrides by dotted keys.

A config file is short: it names a model and says how the rest differs from the defaults below,
which are those of dbolya/yolact on COCO.
"""

import collections
import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxseg.classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from jaxseg.config.model import ModelConfig
from jaxseg.config.values import from_dict, replace_key, require, show
from jaxseg.errors import ConfigError, shortened
from jaxseg.files import read_json

# Steps are counted in signed 32 bits, and seeds are unsigned numbers of 32 bits.
MAX_STEPS = 2**31 - 1
MAX_SEED = 2**32 - 1
# The limit for one host; a larger number is taken for a typing error.
MAX_WORKERS = 1024

# The configs that come with jaxseg: in the package in a wheel, and beside it in a checkout.
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The steps of the original's training augmentation, each of which can be left out."""

    photometric: bool = True
    expand: bool = True
    crop: bool = True
    mirror: bool = True


# The augmentation of the R-CNN family.
MIRROR_ONLY = AugmentConfig(photometric=False, expand=False, crop=False)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A dataset in COCO's layout. Paths are relative to `root` unless they are absolute."""

    # "" means $JAXSEG_DATA, or data/coco if that is not set.
    root: str = ""
    # "coco": image files and a JSON file; "tfds": array_record shards from `coco_instances`.
    format: Literal["coco", "tfds"] = "coco"
    # Whether to write the demo's synthetic shapes to `root` if they are not there yet.
    synthetic: bool = False
    train_annotations: str = "annotations/instances_train2017.json"
    train_images: str = "train2017"
    val_annotations: str = "annotations/instances_val2017.json"
    val_images: str = "val2017"
    # As many as model.num_classes, in ascending order of the category id. If empty, they are read
    # from the training annotations.
    class_names: tuple[str, ...] = COCO_CLASS_NAMES
    category_ids: tuple[int, ...] = COCO_CATEGORY_IDS
    # The number of rows that the ground truth of an image is padded to. If an image has more
    # objects, the smallest are left out and counted.
    max_objects: int = 100
    # Whether to train on images without objects, too (see losses.negatives_without_positives).
    keep_empty: bool = False
    # The number of images to use of each split, from its start; 0 uses all. As a check, a model
    # should be able to learn 8 images by heart.
    limit_images: int = 0
    # The number of worker processes that decode and augment; 0 does so in the training process.
    workers: int = 4
    augment: AugmentConfig = AugmentConfig()

    def validate(self, key: str) -> None:
        require(self.max_objects >= 1, f"{key}.max_objects", self.max_objects, "at least 1")
        require(0 <= self.workers <= MAX_WORKERS, f"{key}.workers", self.workers, f"0 to {MAX_WORKERS} processes")
        require(self.limit_images >= 0, f"{key}.limit_images", self.limit_images, "0 or more")
        repeated = [name for name, count in collections.Counter(self.class_names).items() if count > 1]
        require(not repeated, f"{key}.class_names", self.class_names, f"distinct names; {shortened(repeated)} occurs more than once")
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
    """The weights that a run starts from when its folder holds no checkpoint."""

    # A file of weights or the folder of another run, for the whole detector or only for its
    # backbone; "" starts from random weights.
    weights: str = ""
    # Whether parameters whose shape differs from that in the weights start from random values, as
    # those of the head do when the classes change. If false, they are an error.
    skip_mismatched: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The optimisation, and how often a run logs, saves and evaluates.

    Learning rates and steps are for a batch of `autoscale_batch_size` images.
    """

    seed: int = 0
    batch_size: int = 8
    steps: int = 800_000
    # The number of passes over the training images, whatever the batch size. Above 0, it replaces
    # `steps`, and `decay_epochs` replaces `decay_steps`.
    epochs: int = 0
    decay_epochs: tuple[int, ...] = ()
    # "adamw" suits small models that train from random weights; its learning rate is about 1e-3.
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    # Applies to every trained parameter; the next two keys can exempt biases and norms.
    weight_decay: float = 5e-4
    decay_biases: bool = True
    decay_norms: bool = True
    # The learning rate of all biases, also those of norms, is multiplied by this; it is 2 in
    # maskrcnn-benchmark.
    bias_rate_factor: float = 1.0
    schedule: Literal["steps", "cosine"] = "steps"
    decay_steps: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    decay_factor: float = 0.1
    warmup_steps: int = 500
    warmup_learning_rate: float = 1e-4
    # Above 0, the warm-up starts at this fraction of the learning rate instead of at
    # `warmup_learning_rate`.
    warmup_factor: float = 0.0
    # The batch size that rates and steps are written for. Another `batch_size` multiplies the rates
    # and divides the steps by its ratio to this one; 0 switches the scaling off.
    autoscale_batch_size: int = 8
    # Whether the steps are scaled, too, or only the rates. A `train.steps` on the command line sets
    # this to false.
    autoscale_steps: bool = True
    # The largest global norm of the gradient; 0 switches clipping off.
    clip_norm: float = 0.0
    # The decay per step of a moving average of the parameters, for example 0.9998, which
    # evaluation then uses; 0 keeps no average.
    ema_decay: float = 0.0
    # Steps whose loss is not finite are skipped; this many of them in a row end the training.
    max_skipped_steps: int = 20
    log_every: int = 10
    checkpoint_every: int = 10_000
    # The number of latest checkpoints to keep, besides the one with the best mask AP (or box AP, of
    # a detector without masks).
    keep_checkpoints: int = 3
    # The number of steps between evaluations during training; 0 switches them off.
    evaluate_every: int = 0
    # The number of images of an evaluation during training; 0 uses all.
    evaluate_images: int = 0
    # The number of validation images that each evaluation draws with their detections.
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
            else f"empty when {key}.epochs is 0, where decay_steps apply",
        )


# The "1x" schedule of maskrcnn-benchmark.
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
    """The settings of evaluation."""

    batch_size: int = 8
    # What eval.py and Predictor pad a picture to that keeps its proportions (R-CNN, RetinaNet):
    # "own" pads it to multiples of 32 pixels, as the originals do, with a program for each such
    # size; "shapes" pads it to one of the shapes of model.input, as training and its evaluations
    # do. "auto" is "own", unless model.input.shapes lists shapes.
    canvas: Literal["auto", "own", "shapes"] = "auto"

    def validate(self, key: str) -> None:
        require(self.batch_size >= 1, f"{key}.batch_size", self.batch_size, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run needs. The work folder is runs/<name> by default."""

    name: str = "unnamed"
    model: ModelConfig
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
        if self.model.keeps_proportions:
            right = f"False for {self.model.kind}, which keeps the picture's proportions"
            for name in ("expand", "crop"):
                given = getattr(self.data.augment, name)
                require(not given, f"{key}.data.augment.{name}", given, right)


def show_differences(config: Config) -> str:
    """Returns the lines of `show` whose values are not the defaults of this kind of model."""
    defaults = set(show(Config(model=type(config.model)())).splitlines())
    return "\n".join(line for line in show(config).splitlines() if line not in defaults)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a config and applies overrides by dotted keys.

    Args:
        path: a Python file with `get_config()`, or a `config.json` that a run has saved. If there
            is no such file, this is the name of a config that comes with jaxseg: "yolact_r50",
            "yolact_r50.py" or "configs/yolact_r50.py".
        overrides: values by dotted keys, for example
            `{"model.num_classes": 3, "train.batch_size": "16"}`; text is parsed by the type of the
            field. A `train.steps` given here is not scaled with the batch size: it switches
            `train.autoscale_steps` and `train.epochs` off.

    Raises:
        ConfigError: the file does not exist or holds no config, a key is unknown, or a value is not
            valid; the message names the file or key and says what would be right.
    """
    found = _find_config(Path(path))
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


def _find_config(path: Path) -> Path:
    """Returns the file at `path`, or the config of that name that comes with jaxseg.

    Raises:
        ConfigError: neither exists.
    """
    if path.is_file():
        return path
    shipped = _SHIPPED / (path.name if path.suffix else f"{path.name}.py")
    if str(path.parent) in (".", "configs") and shipped.is_file():
        return shipped
    beside = path.parent.name and path.parent.is_dir()
    near = sorted(file.name for file in (path.parent if beside else _SHIPPED).glob("*.py"))
    where = "files beside it" if beside else "configs that come with jaxseg"
    raise ConfigError(f"There is no config file {path}; the {where} are: {', '.join(near) or 'none'}.")


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
    """Returns a copy of a config with the values at dotted keys replaced, and checks it as a whole.

    Raises:
        ConfigError: a key is unknown (the message lists the keys there are), or a value has the
            wrong type or is out of range.
    """
    for key, value in overrides.items():
        config = replace_key(config, key.split("."), value, key)
    names_given = "data.class_names" in overrides or len(config.data.class_names) == config.model.num_classes
    if "model.num_classes" in overrides and not names_given:
        # Another number of classes means another dataset, so its annotations give the names.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, class_names=(), category_ids=()))
    config.validate()
    return config


def parse_config_flags(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separates `--config.a.b=value` (or `--config.a.b value`) from the other arguments.

    Returns:
        The overrides by their dotted keys, and the other arguments in their order.

    Raises:
        ConfigError: a flag has no value.
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
