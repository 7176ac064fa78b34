"""Operations on masks: assembly from prototypes, crop, training targets, bits and resize."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from jaxseg.structures import AnyArray


def assemble_masks(prototypes: Float32[Array, "h w K"], coefficients: Float32[Array, "D K"]) -> Float32[Array, "D h w"]:
    """Combines prototypes to the soft mask of each detection (arXiv:1904.02689, equation 1)."""
    return jax.nn.sigmoid(jnp.einsum("hwk,dk->dhw", prototypes, coefficients, precision=jax.lax.Precision.HIGHEST))


def box_mask(boxes: Float32[Array, "D 4"], size: tuple[int, int], padding: float = 1.0) -> Bool[Array, "D h w"]:
    """Returns the pixels in each box, with which YOLACT crops its masks.

    Along each axis these are the indices p with low - padding <= p < high + padding.

    Args:
        boxes: `x1, y1, x2, y2` in pixels of the mask. Corners may be swapped or outside of it.
        size: the height and width of the mask.
        padding: the number of pixels that are added on every side.
    """
    height, width = size

    def span(a: Array, b: Array, length: int) -> Array:
        low = jnp.maximum(jnp.minimum(a, b) - padding, 0.0)[:, None]
        high = jnp.minimum(jnp.maximum(a, b) + padding, float(length))[:, None]
        pixels = jnp.arange(length, dtype=jnp.float32)
        return (pixels >= low) & (pixels < high)

    rows = span(boxes[:, 1], boxes[:, 3], height)
    columns = span(boxes[:, 0], boxes[:, 2], width)
    return rows[:, :, None] & columns[:, None, :]


def box_mask_targets(
    crops: Float32[Array, "R M M"], frames: Float32[Array, "R 4"], rois: Float32[Array, "R 4"], size: int
) -> Float32[Array, "R {size} {size}"]:
    """Computes the fraction of each cell of a RoI's grid that its object covers.

    It is the exact mean of the crop over each cell, as two matrix products with the overlaps of
    intervals. It is 0 outside of the frame, and everywhere if a RoI or a frame has no area.

    Args:
        crops: ground-truth masks, each over its frame.
        frames: the boxes `x1, y1, x2, y2` that the crops cover.
        rois: any boxes `x1, y1, x2, y2`.
        size: the number of cells on a side of the grid.
    """
    cells = crops.shape[1]

    def overlaps(low: Array, high: Array, frame_low: Array, frame_high: Array) -> Float32[Array, "R size M"]:
        length, frame = high - low, frame_high - frame_low
        possible = (length > 0) & (frame > 0)
        # The following lengths are in cells of the crop.
        scale = cells / jnp.where(possible, frame, 1.0)
        start, step = (low - frame_low) * scale, length * scale / size
        edges = start[:, None] + jnp.arange(size + 1, dtype=jnp.float32) * step[:, None]
        place = jnp.arange(cells, dtype=jnp.float32)
        common = jnp.minimum(edges[:, 1:, None], place + 1) - jnp.maximum(edges[:, :-1, None], place)
        return jnp.where(possible[:, None, None], jnp.maximum(common, 0.0) / jnp.where(possible, step, 1.0)[:, None, None], 0.0)

    rows = overlaps(rois[:, 1], rois[:, 3], frames[:, 1], frames[:, 3])
    columns = overlaps(rois[:, 0], rois[:, 2], frames[:, 0], frames[:, 2])
    return jnp.einsum("rym,rmn,rxn->ryx", rows, crops, columns, precision=jax.lax.Precision.HIGHEST)


def unpack_bits(packed: UInt8[AnyArray, "*n w8"], width: int) -> Bool[Array, "*n {width}"]:
    """Inverts `numpy.packbits` along the last axis."""
    bits = jnp.asarray(packed)[..., None] >> jnp.arange(7, -1, -1, dtype=jnp.uint8) & 1
    return bits.reshape(*packed.shape[:-1], -1)[..., :width].astype(bool)


def resize_masks(masks: Float32[Array, "D h w"], picture_size: Int32[Array, "2"], canvas: tuple[int, int]) -> Float32[Array, "D H W"]:
    """Resizes soft masks to the size of a picture, with one program for all sizes.

    The size of the picture is data; only the canvas that contains it is static. Masks are
    interpolated bilinearly with half-pixel centres and without antialiasing, as two matrix products
    with the weights of the pixels.

    Args:
        masks: masks over the whole picture, at any resolution.
        picture_size: the height and width of the picture in pixels, at most those of the canvas.
        canvas: the height and width of the result, which is 0 outside of the picture.
    """

    def weights(source: int, length: Array, out: int) -> Float32[Array, "out source"]:
        pixels = jnp.arange(out, dtype=jnp.float32)
        center = (pixels + 0.5) * (source / length.astype(jnp.float32)) - 0.5
        center = jnp.clip(center, 0.0, source - 1.0)
        taps = jnp.maximum(1.0 - jnp.abs(center[:, None] - jnp.arange(source, dtype=jnp.float32)), 0.0)
        return jnp.where((pixels < length)[:, None], taps, 0.0)

    rows = weights(masks.shape[1], picture_size[0], canvas[0])
    columns = weights(masks.shape[2], picture_size[1], canvas[1])
    return jnp.einsum("Hh,dhw,Ww->dHW", rows, masks, columns, precision=jax.lax.Precision.HIGHEST)
