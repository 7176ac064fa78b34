"""Boxes and scores like those of a model.

Boxes form clusters, and their sizes are distributed approximately like those of COCO's objects. So
non-maximum suppression removes boxes, and RoIs share pixels.
"""

import numpy as np

# The square root of a box's area over the shorter side of the input: its median, and the standard
# deviation of its logarithm. About 40 % of COCO's objects are smaller than 32 x 32 pixels and 25 %
# are larger than 96 x 96, in pictures whose shorter side is about 480.
MEDIAN_SIDE, SIDE_SPREAD = 0.09, 1.05
RATIO_SPREAD = 0.4
# The standard deviation of the centres of the boxes around an object, over its size, and of the
# logarithms of their sizes.
CLUSTER_SPREAD = 0.12
# The fraction of the anchors or regions of a trained detector that pass a score threshold.
LIKELY = 0.02


def boxes_around_objects(
    rng: np.random.Generator, shape: tuple[int, ...], input_size: tuple[int, int], side: float | None = None
) -> np.ndarray:
    """Makes boxes, with about 16 around each object, and clips them to the input.

    Args:
        rng: the source of randomness.
        shape: the number of boxes, along any number of axes; the last axis is that of one image or
            one list.
        input_size: the height and width of the network's input.
        side: the side of all objects in pixels; by default they have COCO's spread of sizes.

    Returns:
        `x1, y1, x2, y2` in pixels of the input, float32 `[*shape, 4]`.
    """
    lists, count = shape[:-1], shape[-1]
    objects = (*lists, max(2, count // 16))
    height, width = input_size
    middle = np.log(MEDIAN_SIDE * min(input_size) if side is None else side)
    log_side = rng.normal(middle, SIDE_SPREAD if side is None else 0.2, objects)
    log_ratio = rng.normal(0.0, RATIO_SPREAD, objects) / 2
    log_size = np.minimum(np.stack([log_side + log_ratio, log_side - log_ratio], -1), np.log((width, height)))
    centers = rng.random((*objects, 2)) * (width, height)
    chosen = rng.integers(objects[-1], size=shape)[..., None]
    log_size = np.take_along_axis(log_size, chosen, -2) + rng.normal(0.0, CLUSTER_SPREAD, (*shape, 2))
    size = np.exp(log_size)
    center = np.take_along_axis(centers, chosen, -2) + size * rng.normal(0.0, CLUSTER_SPREAD, (*shape, 2))
    return np.concatenate([center - size / 2, center + size / 2], -1).clip(0, (width, height) * 2).astype(np.float32)


def with_ties(scores: np.ndarray) -> np.ndarray:
    """Rounds scores to 12 bits, so that some are equal, as those of bfloat16 networks are."""
    return (np.round(scores * 4096) / 4096).astype(np.float32)


def class_scores(rng: np.random.Generator, shape: tuple[int, int, int], threshold: float) -> np.ndarray:
    """Makes class probabilities, of which one or two pass the threshold for a few boxes.

    In a short list, this holds for most boxes.

    Args:
        rng: the source of randomness.
        shape: the numbers of images, boxes and classes.
        threshold: the threshold on scores.
    """
    batch, boxes, classes = shape
    share = max(LIKELY, min(1.0, 400 / boxes))
    scores = rng.random(shape) ** 4 * max(threshold, 0.0)
    likely = rng.random((batch, boxes)) < share
    for _ in range(2):
        best = rng.integers(classes, size=(batch, boxes, 1))
        np.put_along_axis(scores, best, np.where(likely, rng.beta(0.6, 1.2, (batch, boxes)), 0.0)[..., None], -1)
    return scores
