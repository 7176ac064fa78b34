"""Typed configuration: dataclasses, files with a `get_config()`, and dotted overrides.

A config file is short: it says how an experiment differs from the defaults below, which are YOLACT-base
(ResNet-101 at 550 px on COCO) as dbolya/yolact trains it.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from jaxseg.classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what would be right."""


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """`resnet` (bottlenecks, stride in the 3x3) or `darknet`, by blocks a stage and the stem's width."""

    name: Literal["resnet", "darknet"] = "resnet"
    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    # RGB, in 0..255. Darknet divides by 255 only.
    pixel_mean: tuple[float, ...] = (123.68, 116.78, 103.94)
    pixel_std: tuple[float, ...] = (58.40, 57.12, 57.38)

    def validate(self, key: str) -> None:
        stages = 4 if self.name == "resnet" else 5
        _require(len(self.stage_sizes) == stages, f"{key}.stage_sizes", self.stage_sizes, f"{stages} stages for a {self.name}")
        _require(min(self.stage_sizes) >= 1, f"{key}.stage_sizes", self.stage_sizes, "at least one block a stage")
        _require(self.width >= 1, f"{key}.width", self.width, "at least 1")
        for name in ("pixel_mean", "pixel_std"):
            _require(len(getattr(self, name)) == 3, f"{key}.{name}", getattr(self, name), "three numbers, for R, G and B")
        _require(min(self.pixel_std) > 0, f"{key}.pixel_std", self.pixel_std, "numbers above 0")


RESNET50 = BackboneConfig(stage_sizes=(3, 4, 6, 3))
RESNET101 = BackboneConfig(stage_sizes=(3, 4, 23, 3))
DARKNET53 = BackboneConfig(
    name="darknet", stage_sizes=(1, 2, 8, 8, 4), width=32, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(255.0, 255.0, 255.0)
)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and rules of YOLACT's losses (paper section 3; numbers as dbolya/yolact ships them)."""

    box_weight: float = 1.5
    class_weight: float = 1.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    # A prior that lies in a crowd region by more than this part of its area is neither positive nor negative.
    crowd_overlap: float = 0.7
    negatives_per_positive: int = 3
    # Negatives mined in an image without positives. The original has 0: such an image teaches nothing.
    negatives_without_positives: int = 0
    max_mask_positives: int = 100

    def validate(self, key: str) -> None:
        for name in ("box_weight", "class_weight", "mask_weight", "semantic_weight"):
            _require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        for name in ("positive_iou", "negative_iou", "crowd_overlap"):
            _require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        _require(
            self.negative_iou <= self.positive_iou, f"{key}.negative_iou", self.negative_iou, f"at most positive_iou, {self.positive_iou}"
        )
        _require(self.negatives_per_positive >= 1, f"{key}.negatives_per_positive", self.negatives_per_positive, "at least 1")
        _require(self.negatives_without_positives >= 0, f"{key}.negatives_without_positives", self.negatives_without_positives, "0 or more")
        _require(self.max_mask_positives >= 1, f"{key}.max_mask_positives", self.max_mask_positives, "at least 1")


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """From raw outputs to detections, as the original's `Detect`."""

    nms: Literal["fast", "cross_class", "greedy"] = "fast"
    # A prior is a candidate when its best foreground probability exceeds this.
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    top_k: int = 200
    max_detections: int = 100

    def validate(self, key: str) -> None:
        for name in ("score_threshold", "iou_threshold"):
            _require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("top_k", "max_detections"):
            _require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")


@dataclasses.dataclass(frozen=True)
class YolactConfig:
    """YOLACT (arXiv:1904.02689). Defaults: YOLACT-base."""

    num_classes: int = 80
    image_size: int = 550
    backbone: BackboneConfig = RESNET101
    fpn_channels: int = 256
    head_channels: int = 256
    prototype_channels: int = 256
    num_prototypes: int = 32
    # One tuple a level, P3 to P7, in pixels.
    anchor_scales: tuple[tuple[float, ...], ...] = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
    anchor_aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    # The published weights learned with the height overwritten by the width.
    square_anchors: bool = True
    # "auto": frozen when the global batch is under 6 images, as the original does per GPU.
    batch_norm: Literal["auto", "train", "frozen"] = "auto"
    # Of the convolutions; "auto" is bfloat16 on GPUs and TPUs, float32 on CPUs. Parameters, boxes and losses stay float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    losses: LossConfig = LossConfig()
    detection: DetectionConfig = DetectionConfig()

    def validate(self, key: str) -> None:
        _require(self.num_classes >= 1, f"{key}.num_classes", self.num_classes, "at least 1 (background is not counted)")
        _require(self.image_size >= 32, f"{key}.image_size", self.image_size, "at least 32 pixels")
        for name in ("fpn_channels", "head_channels", "prototype_channels", "num_prototypes"):
            _require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        _require(len(self.anchor_scales) == 5, f"{key}.anchor_scales", self.anchor_scales, "five tuples of scales, for P3 to P7")
        counts = {len(scales) for scales in self.anchor_scales}
        _require(
            len(counts) == 1 and min(counts) >= 1,
            f"{key}.anchor_scales",
            self.anchor_scales,
            "the same number of scales on every level, for the head is shared",
        )
        _require(all(s > 0 for scales in self.anchor_scales for s in scales), f"{key}.anchor_scales", self.anchor_scales, "scales above 0")
        _require(
            len(self.anchor_aspect_ratios) >= 1 and min(self.anchor_aspect_ratios) > 0,
            f"{key}.anchor_aspect_ratios",
            self.anchor_aspect_ratios,
            "one or more ratios above 0",
        )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The original's training augmentation, step by step; each step can be left out."""

    photometric: bool = True
    expand: bool = True
    crop: bool = True
    mirror: bool = True


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
        _require(self.max_objects >= 1, f"{key}.max_objects", self.max_objects, "at least 1")
        for name in ("workers", "limit_images"):
            _require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        _require(
            len(self.class_names) == len(self.category_ids),
            f"{key}.category_ids",
            self.category_ids,
            f"as many ids as class_names, {len(self.class_names)}",
        )
        _require(
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
    # "adamw" for training small models from nothing; the rate wants to be lower, about 1e-3.
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    # On every trained parameter, biases and batch norm included, as the original does.
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine"] = "steps"
    decay_steps: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    decay_factor: float = 0.1
    warmup_steps: int = 500
    warmup_learning_rate: float = 1e-4
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
    # How many of the last checkpoints to keep, beside the best one by mask AP.
    keep_checkpoints: int = 3
    # 0: no evaluation during training.
    evaluate_every: int = 0
    # Images a validation during training looks at; 0: all.
    evaluate_images: int = 0
    # Validation images drawn with their detections at each evaluation.
    draw_images: int = 4

    def validate(self, key: str) -> None:
        for name in ("batch_size", "steps", "log_every", "checkpoint_every", "keep_checkpoints", "max_skipped_steps"):
            _require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        for name in ("seed", "weight_decay", "warmup_steps", "warmup_learning_rate", "autoscale_batch_size", "clip_norm"):
            _require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        for name in ("evaluate_every", "evaluate_images", "draw_images"):
            _require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        _require(self.learning_rate > 0, f"{key}.learning_rate", self.learning_rate, "above 0")
        for name in ("momentum", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, f"{key}.{name}", getattr(self, name), "at least 0 and under 1")
        _require(
            list(self.decay_steps) == sorted(set(self.decay_steps)),
            f"{key}.decay_steps",
            self.decay_steps,
            "distinct steps in ascending order",
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    batch_size: int = 8

    def validate(self, key: str) -> None:
        _require(self.batch_size >= 1, f"{key}.batch_size", self.batch_size, "at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run needs. `name` is also the default of the work folder, runs/<name>."""

    name: str = "yolact_r101"
    model: YolactConfig = YolactConfig()
    data: DataConfig = DataConfig()
    init: InitConfig = InitConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    def validate(self, key: str = "config") -> None:
        for name in ("model", "data", "train", "eval"):
            getattr(self, name).validate(f"{key}.{name}")
        self.model.backbone.validate(f"{key}.model.backbone")
        self.model.losses.validate(f"{key}.model.losses")
        self.model.detection.validate(f"{key}.model.detection")
        named = len(self.data.class_names)
        _require(
            named in (0, self.model.num_classes),
            f"{key}.model.num_classes",
            self.model.num_classes,
            f"as many as data.class_names, {named} (or empty data.class_names, to read them from the annotations)",
        )


C = TypeVar("C")


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a config and applies dotted overrides.

    Args:
        path: a Python file with `get_config()`, or a `config.json` that a run has saved. A relative path is looked
            up from the working folder, then from the folder that holds the jaxseg package.
        overrides: for instance `{"model.num_classes": 3, "train.batch_size": "16"}`; text is parsed by the field's type.
            A `train.steps` given here is meant literally and switches `train.autoscale_steps` off.

    Raises:
        ConfigError: naming the file or key, what is wrong, and what would be right.
    """
    path = Path(path)
    found = next((p for p in (path, Path(__file__).parent.parent / path) if p.is_file()), None)
    if found is None:
        near = sorted(p.name for p in (path.parent if path.parent.is_dir() else Path(__file__).parent.parent / "configs").glob("*.py"))
        raise ConfigError(f"There is no config file {path}; the files beside it are: {', '.join(near) or 'none'}.")
    if found.suffix == ".json":
        try:
            config = from_dict(Config, json.loads(found.read_text()))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{found} is not valid JSON: {error}.") from None
    else:
        config = _run_config_file(found)
    overrides = dict(overrides or {})
    if "train.steps" in overrides:
        overrides.setdefault("train.autoscale_steps", False)
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
        config = _replace(config, key.split("."), value, key)
    names_given = "data.class_names" in overrides or len(config.data.class_names) == config.model.num_classes
    if "model.num_classes" in overrides and not names_given:
        # Another number of classes is another dataset: its names come from its annotations.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, class_names=(), category_ids=()))
    config.validate()
    return config


def _replace(node: Any, parts: list[str], value: Any, key: str) -> Any:
    hints = typing.get_type_hints(type(node))
    head, *rest = parts
    here = ".".join(key.split(".")[: -len(parts)]) or "config"
    if head not in hints:
        near = difflib.get_close_matches(head, hints, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"Unknown config key {key}: {here} has the keys {', '.join(hints)}.{hint}")
    if rest:
        child = getattr(node, head)
        if not dataclasses.is_dataclass(child):
            raise ConfigError(f"Unknown config key {key}: {head} is a single value and has no key {rest[0]}.")
        return dataclasses.replace(node, **{head: _replace(child, rest, value, key)})
    return dataclasses.replace(node, **{head: _convert(value, hints[head], key)})


def _convert(value: Any, hint: Any, key: str) -> Any:
    """The value as the field's type; text is parsed, numbers are widened, anything else is refused."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{key} = {value!r} is not one of {', '.join(map(repr, args))}.")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value, key)  # type: ignore[arg-type]
        raise ConfigError(f"{key} is a group of keys; set one of them: {', '.join(typing.get_type_hints(hint))}.")
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _convert(value, option, key)
            except ConfigError:
                continue
        raise ConfigError(f"{key} = {value!r} is not of type {hint}.")
    if hint is str:
        if isinstance(value, str):
            return value
        raise ConfigError(f"{key} = {value!r} is a {type(value).__name__}; it must be text.")
    if isinstance(value, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
        except (ValueError, SyntaxError):
            raise ConfigError(f"{key} = {value!r} is not a {_type_name(hint)}.") from None
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} = {value!r} is not a {_type_name(hint)}; write it as (a, b, ...).")
        return tuple(_convert(item, args[0], f"{key}[{i}]") for i, item in enumerate(value))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        return int(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{key} = {value!r} is not a {_type_name(hint)}.")


def _type_name(hint: Any) -> str:
    return {bool: "true or false", int: "whole number", float: "number"}.get(hint, "list")


def _require(condition: bool, key: str, value: Any, right: str) -> None:
    if not condition:
        raise ConfigError(f"{key} = {value!r} is out of range; it must be {right}.")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and numbers, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[C], values: Mapping[str, Any], key: str = "") -> C:
    """The inverse of `to_dict`; unknown keys and wrong types raise `ConfigError`."""
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in hints:
            raise ConfigError(f"Unknown config key {prefix}{name}: {key or 'config'} has the keys {', '.join(hints)}.")
    return kind(**{name: _convert(value, hints[name], f"{prefix}{name}") for name, value in values.items()})


def show(config: Any, key: str = "config") -> str:
    """The config, one `key = value` a line, spelled as the command line takes them."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lines.append(show(value, f"{key}.{field.name}") if dataclasses.is_dataclass(value) else f"{key}.{field.name} = {value!r}")
    return "\n".join(lines)


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
