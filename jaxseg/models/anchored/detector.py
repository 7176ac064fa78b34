"""The base class of R-CNN and RetinaNet: padded input, and anchors on the levels of a pyramid."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from jaxseg.models.anchored.config import SIZE_DIVISOR, AnchoredConfig
from jaxseg.models.detector import Detector
from jaxseg.models.freezing import is_frozen
from jaxseg.ops.anchors import pyramid_anchors
from jaxseg.ops.images import Images, blank_padding, normalize_images
from jaxseg.structures import InputSpec, Resize

Levels = tuple[Float[Array, "B _ _ c"], ...]


class AnchoredDetector(Detector):
    """A detector whose boxes start from anchors, with the conventions of one of the originals."""

    config: AnchoredConfig

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the levels that anchors lie on."""
        raise NotImplementedError(f"{type(self).__name__}.strides")

    @property
    def mask_crop_size(self) -> int | None:
        """The number of cells along a side of a ground-truth mask; None if there are no masks."""
        return None

    @property
    def mask_pool(self) -> int:
        """See `InputSpec.mask_pool`."""
        return 0

    @property
    def input_spec(self) -> InputSpec:
        """The sizes of the batches: a few padded shapes, and masks that cover their boxes."""
        c, crop = self.config, self.mask_crop_size
        return InputSpec(
            input_sizes=c.input.padded_shapes,
            mask_size=(crop, crop) if crop else None,
            semantic_size=None,
            num_classes=c.num_classes,
            resize=Resize(c.conventions.resize, c.input.shorter_side, c.input.longer_side),
            mask_frame=c.conventions.mask_paste,
            pixel_offset=c.conventions.pixel_offset,
            mask_targets=c.conventions.mask_targets if crop else "cells",
            mask_pool=self.mask_pool if crop else 0,
            size_divisor=SIZE_DIVISOR,
            # Shapes that a configuration lists are meant.
            evaluation_canvas="shapes" if c.input.shapes else "own",
        )

    def learns(self, path: tuple[str, ...]) -> bool:
        """Whether a parameter learns: all do but those of frozen batch norms and frozen stages."""
        return not is_frozen(path, self.config.backbone, self.config.batch_norm)

    def trunk_input(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Float[Array, "B H W 3"]:
        """Returns the normalised images, with 0 in the padding."""
        trunk = self.config.backbone
        return blank_padding(normalize_images(images, trunk.pixel_mean, trunk.pixel_std, self.dtype), image_sizes)

    def anchors(self, levels: Levels, images: Images) -> list[Float32[np.ndarray, "_ 4"]]:
        """Returns each level's anchors, `x1, y1, x2, y2` in pixels of the network's input."""
        c = self.config
        return pyramid_anchors(
            [(level.shape[1], level.shape[2]) for level in levels],
            self.strides,
            c.anchor_sizes,
            c.anchor_aspect_ratios,
            rule=c.conventions.cell_anchors,
            canvas=(images.shape[1], images.shape[2]) if c.conventions.anchor_strides == "measured" else None,
        )


def whole_sizes(images: Images) -> Int32[Array, "B 2"]:
    """Returns the heights and widths of pictures that fill the network's input."""
    return jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32), (len(images), 2))
