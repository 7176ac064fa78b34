"""The settings that Faster R-CNN, Mask R-CNN and RetinaNet share."""

import dataclasses
from typing import ClassVar, Literal

from jaxseg.config.values import require
from jaxseg.models.anchored.conventions import MASKRCNN_BENCHMARK, Conventions
from jaxseg.models.backbones.config import MSRA_RESNET50, BackboneConfig, BackboneModelConfig

# The sides of the network's input are multiples of this, which the strides of P2 to P5 divide.
SIZE_DIVISOR = 32


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """The sizes of the network's input.

    Pictures keep their proportions and are padded on the right and below to one of a few shapes.
    """

    # The shorter side in pixels. Training draws one of them, and evaluation takes the largest.
    shorter_side: tuple[int, ...] = (800,)
    longer_side: int = 1333
    # The height and width of each padded shape. If empty, there are two: one that holds every
    # landscape picture, and one for portraits.
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def padded_shapes(self) -> tuple[tuple[int, int], ...]:
        """The height and width of each padded shape: `shapes`, or two that hold every picture."""
        if self.shapes:
            return tuple((height, width) for height, width in self.shapes)
        short, long = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (max(self.shorter_side), self.longer_side))
        return ((short, long), (long, short)) if short != long else ((short, long),)

    def validate(self, key: str) -> None:
        require(len(self.shorter_side) >= 1, f"{key}.shorter_side", self.shorter_side, "one side or more")
        require(min(self.shorter_side) >= SIZE_DIVISOR, f"{key}.shorter_side", self.shorter_side, f"at least {SIZE_DIVISOR} pixels")
        require(self.longer_side >= max(self.shorter_side), f"{key}.longer_side", self.longer_side, "at least the largest of shorter_side")
        even = all(len(shape) == 2 and min(shape) > 0 and not any(side % SIZE_DIVISOR for side in shape) for shape in self.shapes)
        require(even, f"{key}.shapes", self.shapes, f"pairs of height and width, multiples of {SIZE_DIVISOR}")


@dataclasses.dataclass(frozen=True)
class AnchoredConfig(BackboneModelConfig):
    """The settings of a detector with anchors, on pictures that keep their proportions."""

    input: InputConfig = InputConfig()
    backbone: BackboneConfig = MSRA_RESNET50
    fpn_channels: int = 256
    # One tuple of sizes, in pixels, for each level that anchors lie on.
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    # The ratios of height to width.
    anchor_aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    # "eval" uses the running statistics while scales and biases learn; "frozen" also keeps scales
    # and biases as they are.
    batch_norm: Literal["train", "eval", "frozen"] = "frozen"
    conventions: Conventions = MASKRCNN_BENCHMARK

    keeps_proportions: ClassVar[bool] = True

    @property
    def anchor_levels(self) -> int:
        """The number of levels that anchors lie on."""
        return 5

    def validate(self, key: str) -> None:
        super().validate(key)
        require(self.fpn_channels >= 1, f"{key}.fpn_channels", self.fpn_channels, "at least 1")
        require(self.backbone.name == "resnet", f"{key}.backbone.name", self.backbone.name, "resnet")
        self.input.validate(f"{key}.input")
        self.conventions.validate(f"{key}.conventions")
        sizes, ratios = self.anchor_sizes, self.anchor_aspect_ratios
        counts = {len(level) for level in sizes}
        levels = f"one tuple a level, and there are {self.anchor_levels}"
        require(len(sizes) == self.anchor_levels, f"{key}.anchor_sizes", sizes, levels)
        shared = "as many sizes on each level, for the head is shared"
        require(len(counts) == 1 and min(counts) >= 1, f"{key}.anchor_sizes", sizes, shared)
        require(all(size > 0 for level in sizes for size in level), f"{key}.anchor_sizes", sizes, "sizes above 0")
        require(len(ratios) >= 1 and min(ratios) > 0, f"{key}.anchor_aspect_ratios", ratios, "one or more ratios above 0")
