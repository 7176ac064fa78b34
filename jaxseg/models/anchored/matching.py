"""Which anchors learn from which objects, by the conventions of the originals."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from jaxseg.models.anchored.conventions import Conventions
from jaxseg.ops.anchors import in_padded_picture, inside_picture
from jaxseg.ops.matching import Match, Matches, match_anchors
from jaxseg.structures import Targets


def match_objects(
    anchors: Float32[np.ndarray, "A 4"],
    targets: Targets,
    image_size: Int32[Array, "2"],
    positive_iou: float,
    negative_iou: float,
    conventions: Conventions,
) -> Matches:
    """What the anchors are to the objects of one image, by the conventions' rules; anchors that may not learn are ignored.

    Args:
        anchors: of all levels, in pixels of the network's input.
        targets: ground truth; crowds do not count.
        image_size: height and width of the picture within the network's input.
        positive_iou: see `match_anchors`.
        negative_iou: see `match_anchors`.
        conventions: whose rules.
    """
    labels, matched = match_anchors(
        anchors,
        targets.boxes,
        targets.valid & ~targets.crowd,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        forced=conventions.forced_match,
        forced_min_iou=conventions.forced_match_iou,
        pixel_offset=conventions.pixel_offset,
        # Objects do not choose among anchors beyond the picture; those that reach out of it they may choose, in vain.
        candidates=None if conventions.padding_anchors else in_padded_picture(anchors, image_size),
    )
    learns = inside_picture(anchors, image_size, border=conventions.anchor_border)
    return Matches(jnp.where(learns, labels, Match.IGNORE), matched)
