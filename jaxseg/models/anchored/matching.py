"""The matching of anchors to objects, by the conventions of the originals."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from jaxseg.models.anchored.config import SIZE_DIVISOR
from jaxseg.models.anchored.conventions import Conventions
from jaxseg.ops.anchors import in_padded_picture, inside_picture
from jaxseg.ops.matching import Match, Matcher, Matches
from jaxseg.structures import Targets


def match_objects(
    anchors: Float32[np.ndarray, "A 4"],
    targets: Targets,
    image_size: Int32[Array, "2"],
    *,
    positive_iou: float,
    negative_iou: float,
    conventions: Conventions,
) -> Matches:
    """Matches the anchors of one image to its objects; anchors that may not learn are ignored.

    Args:
        anchors: the anchors of all levels, in pixels of the network's input.
        targets: the ground truth; crowd regions are left out.
        image_size: the height and width of the picture within the network's input.
        positive_iou: see `Matcher`.
        negative_iou: see `Matcher`.
        conventions: the rules of matching.
    """
    matcher = Matcher(
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        forced=conventions.forced_match,
        forced_min_iou=conventions.forced_match_iou,
        pixel_offset=conventions.pixel_offset,
    )
    # Objects do not choose anchors that lie beyond the picture. They may choose anchors that reach
    # beyond it, although these do not learn.
    candidates = None if conventions.padding_anchors else in_padded_picture(anchors, image_size, divisor=SIZE_DIVISOR)
    labels, matched = matcher(anchors, targets.boxes, targets.valid & ~targets.crowd, candidates)
    learns = inside_picture(anchors, image_size, border=conventions.anchor_border)
    return Matches(jnp.where(learns, labels, Match.IGNORE), matched)
