"""A detector outside of jaxseg: its configuration, its network and the names of its weights.

Each cell of a grid predicts class scores, and the box of the object whose centre lies in the cell.
A map of foreground probabilities, cropped to the box, is the mask. Pictures keep their proportions,
and masks cover the whole input, which is a combination that none of jaxseg's detectors has.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxseg.config import ModelConfig, require
from jaxseg.models import Detector, detector_of
from jaxseg.ops.masks import box_mask, unpack_bits
from jaxseg.structures import Batch, Detections, InputSpec, Resize, Targets
from jaxseg.weights import NameTable, register_names

STRIDE = 8


@dataclasses.dataclass(frozen=True)
class GridConfig(ModelConfig):
    """The settings of the detector."""

    kind: Literal["grid"] = "grid"
    side: int = 64
    width: int = 8
    score_threshold: float = 0.05
    max_detections: int = 5

    resumable_keys: ClassVar[tuple[str, ...]] = ("score_threshold",)
    keeps_proportions: ClassVar[bool] = True

    @property
    def has_masks(self) -> bool:
        return True

    def validate(self, key: str) -> None:
        super().validate(key)
        require(self.side % STRIDE == 0, f"{key}.side", self.side, f"a multiple of {STRIDE}")


@detector_of(GridConfig)
class GridDetector(Detector):
    """A stem with the stride of a cell, and three 1x1 convolutions."""

    config: GridConfig

    def setup(self) -> None:
        self.stem = nn.Conv(self.config.width, (STRIDE, STRIDE), (STRIDE, STRIDE), dtype=self.dtype)
        self.classes = nn.Conv(self.config.num_classes, (1, 1), dtype=self.dtype)
        self.boxes = nn.Conv(4, (1, 1), dtype=self.dtype)
        self.foreground = nn.Conv(1, (1, 1), dtype=self.dtype)

    @property
    def input_spec(self) -> InputSpec:
        side = self.config.side
        return InputSpec(
            input_sizes=((side, side),),
            mask_size=(side // STRIDE, side // STRIDE),
            semantic_size=None,
            num_classes=self.config.num_classes,
            resize=Resize("opencv", (side,), side),
            mask_frame="image",
        )

    def __call__(self, images):
        features = nn.relu(self.stem(images.astype(jnp.float32) / 255))
        return self.classes(features), nn.softplus(self.boxes(features)), self.foreground(features)[..., 0]

    def losses(self, batch: Batch, *, train: bool):
        del train
        cells = self.config.side // STRIDE
        logits, sizes, foreground = self(batch.images)
        terms = jax.vmap(lambda targets: cell_targets(targets, cells, self.config.num_classes))(batch.targets)
        classes, boxes, masks = terms
        positive = classes.any(-1)
        distance = jnp.abs(sizes - boxes).sum(-1)
        return {
            "class": optax.sigmoid_binary_cross_entropy(logits, classes.astype(jnp.float32)).mean(),
            "box": jnp.where(positive, distance, 0.0).sum() / jnp.maximum(positive.sum(), 1),
            "mask": optax.sigmoid_binary_cross_entropy(foreground, masks.astype(jnp.float32)).mean(),
        }

    def detect(self, images, image_sizes) -> Detections:
        logits, sizes, foreground = self(images)
        detect = jax.vmap(lambda *outputs: cell_detections(*outputs, self.config))
        return detect(logits, sizes, foreground)


def centres(cells: int):
    """Returns the centre (x, y) of each cell in pixels, `[cells, cells, 2]`."""
    along = (jnp.arange(cells) + 0.5) * STRIDE
    return jnp.stack(jnp.meshgrid(along, along), -1)


def cell_targets(targets: Targets, cells: int, num_classes: int):
    """Makes the targets of one image.

    They are the class of each cell, the distances from its centre to the sides of the box in cells,
    and the foreground.
    """
    boxes, valid = jnp.asarray(targets.boxes), targets.valid & ~targets.crowd
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 // STRIDE).astype(jnp.int32)
    column, row = jnp.where(valid[:, None], middle, cells).T
    labels = jnp.zeros((cells, cells, num_classes), bool).at[row, column, targets.classes].set(True, mode="drop")
    corners = jnp.zeros((cells, cells, 4)).at[row, column].set(boxes, mode="drop")
    sides = jnp.concatenate([centres(cells) - corners[..., :2], corners[..., 2:] - centres(cells)], -1) / STRIDE
    masks = unpack_bits(targets.masks, cells) & valid[:, None, None]
    return labels, sides, masks.any(0)


def cell_detections(logits, sizes, foreground, config: GridConfig) -> Detections:
    """Selects the best cells of one image, with the foreground within their boxes as masks."""
    cells = logits.shape[0]
    best, order = jax.lax.top_k(jax.nn.sigmoid(logits.astype(jnp.float32)).reshape(-1), config.max_detections)
    cell, classes = jnp.divmod(order, config.num_classes)
    middle, sides = centres(cells).reshape(-1, 2)[cell], STRIDE * sizes.reshape(-1, 4)[cell]
    boxes = jnp.concatenate([middle - sides[:, :2], middle + sides[:, 2:]], -1).astype(jnp.float32)
    inside = box_mask(boxes / STRIDE, (cells, cells))
    masks = jnp.where(inside, jax.nn.sigmoid(foreground.astype(jnp.float32)), 0.0)
    return Detections(boxes, best, classes.astype(jnp.int32), best > config.score_threshold, masks)


NAMES = {"stem": "backbone.0", "classes": "cls_head", "boxes": "reg_head", "foreground": "mask_head"}
register_names(NameTable("a grid detector", GridConfig, lambda config: iter(NAMES.items())))
