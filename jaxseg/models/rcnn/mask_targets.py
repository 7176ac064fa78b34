"""The targets of the mask head: what each of its cells should say about a region's object."""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from jaxseg.models.anchored.conventions import Conventions
from jaxseg.ops.bitmaps import bitmap_targets
from jaxseg.ops.masks import box_mask_targets, unpack_bits
from jaxseg.ops.polygons import polygon_targets
from jaxseg.structures import Targets

# Sums of float32 may fall short of one half by rounding.
_HALF = 0.5 - 1e-5


def mask_targets(
    regions: Float32[Array, "M 4"],
    objects: Int32[Array, "M"],
    targets: Targets,
    image_size: Int32[Array, "2"],
    *,
    size: int,
    crop_size: int,
    longest: int,
    conventions: Conventions,
) -> Float32[Array, "M {size} {size}"]:
    """Makes the mask targets of the regions of one image, by `conventions.mask_targets`.

    Args:
        regions: `x1, y1, x2, y2` in pixels of the network's input.
        objects: the object that each region is matched to, as a row of the ground truth.
        targets: the ground truth of the image.
        image_size: the height and width of the picture within the network's input.
        size: the number of cells along a side of the result.
        crop_size: the number of cells along a side of the ground truth's cells.
        longest: the longest side of the network's input.
        conventions: the rules that the originals differ in.

    Returns:
        For each cell 0 or 1, or fractions if the conventions say so.
    """
    if targets.bitmaps is not None:
        # mmdetection pads the masks of a picture to a multiple of 32.
        whole = -(-image_size // 32) * 32 if conventions.roi_aligned else image_size
        aligned = conventions.roi_aligned
        soft = bitmap_targets(targets.bitmaps, objects, regions, whole, size, aligned=aligned, longest=longest)
        return soft if conventions.soft_mask_targets else (soft >= _HALF).astype(jnp.float32)
    cells = _from_cells(regions, objects, targets, size, crop_size=crop_size, conventions=conventions)
    if targets.polygons is None:
        return cells
    # The least sides are those of maskrcnn-benchmark and of detectron2.
    least_side = 1.0 if conventions.pixel_offset else 0.1
    drawn = polygon_targets(targets.polygons, objects, regions, size, least_side=least_side).astype(jnp.float32)
    return jnp.where((jnp.asarray(targets.polygons.counts)[objects] > 0)[:, None, None], drawn, cells)


def _from_cells(
    regions: Float32[Array, "M 4"],
    objects: Int32[Array, "M"],
    targets: Targets,
    size: int,
    *,
    crop_size: int,
    conventions: Conventions,
) -> Float32[Array, "M {size} {size}"]:
    """Resamples the cells over each object's box."""
    assert targets.masks is not None
    # Masks cover the last pixels of their boxes, too.
    frames = jnp.asarray(targets.boxes)[objects] + jnp.array([0.0, 0.0, conventions.pixel_offset, conventions.pixel_offset])
    crops = unpack_bits(jnp.asarray(targets.masks)[objects], crop_size).astype(jnp.float32)
    if conventions.soft_mask_targets:
        # torchvision crops masks with its unaligned RoIAlign, which is half a pixel off.
        return box_mask_targets(crops, frames, regions + 0.5, size)
    return (box_mask_targets(crops, frames, regions, size) >= 0.5).astype(jnp.float32)
