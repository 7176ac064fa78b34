"""The settings that all detectors share, and the list of the kinds of detectors."""

import dataclasses
from typing import ClassVar, Literal

from jaxseg.config.values import require
from jaxseg.errors import ConfigError
from jaxseg.ops.implementation import Implementation

_KINDS: dict[str, "type[ModelConfig]"] = {}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings of a detector. Each detector has a subclass, which adds its own settings.

    A subclass with a class attribute `kind: Literal["name"] = "name"` becomes known under that name
    as soon as its module is imported: configurations are then read from and written to files, and
    `jaxseg.models.detector_of` says which detector the subclass describes. Every field needs a
    default value.

    Training, evaluation, prediction and the loading of weights ask a configuration for the
    following facts, and never which class it has.

    Attributes:
        kind: the name of the detector's kind, which tells the subclasses apart in files.
        num_classes: the number of the dataset's classes; the background is not counted.
        dtype: the type in which the convolutions compute; "auto" is bfloat16 on GPUs and TPUs and
            float32 on CPUs. Parameters, boxes and losses are always float32.
        implementation: the implementation of RoIAlign and non-maximum suppression; see
            `jaxseg.ops.implementation`.
        resumable_keys: the keys of this class that may change when a run is resumed, because they
            do not change the meaning of the variables. An entry is the name of a key, or the name
            of a group with a dot at its end.
        nms_rules: the rules of non-maximum suppression that `with_nms` accepts.
        keeps_proportions: whether pictures keep their proportions in the network's input, instead
            of being stretched to it.
    """

    kind: str = ""
    num_classes: int = 80
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    implementation: Implementation = "auto"

    resumable_keys: ClassVar[tuple[str, ...]] = ()
    nms_rules: ClassVar[tuple[str, ...]] = ()
    keeps_proportions: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        kind = vars(cls).get("kind")
        if kind is None:
            return
        known = _KINDS.get(kind)
        # A config file that defines a subclass may be executed more than once.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.__name__} and {known.__name__} both call their kind of model {kind!r}.")
        _KINDS[kind] = cls

    @classmethod
    def kinds(cls) -> dict[str, "type[ModelConfig]"]:
        """Returns the configuration classes of all detectors that are known, by their `kind`."""
        return dict(_KINDS)

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns and finds masks."""
        return False

    def with_nms(self, rule: str) -> "ModelConfig":
        """Returns this configuration with another rule of non-maximum suppression.

        Raises:
            ConfigError: the detector does not have this rule.
        """
        if not self.nms_rules:
            raise ConfigError(f"nms = {rule!r} cannot be chosen: config.model.kind = {self.kind!r} knows one rule only.")
        raise ConfigError(f"nms = {rule!r} is not one of {', '.join(map(repr, self.nms_rules))}.")

    def validate(self, key: str) -> None:
        """Checks the values.

        Args:
            key: the dotted name of this group, for messages.

        Raises:
            ConfigError: a value is out of range; the message names the key and the valid values.
        """
        require(self.num_classes >= 1, f"{key}.num_classes", self.num_classes, "at least 1 (background is not counted)")
