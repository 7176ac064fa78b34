"""Polygons in the network's input, for masks that are drawn for each region on the device."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxseg.data.sources.dataset import ObjectPolygons
from jaxseg.data.views.view import View
from jaxseg.ops.polygons import MOST_PARTS
from jaxseg.structures import PolygonPool


def pack_polygons(polygons: Sequence[ObjectPolygons], view: View, *, points: int, rows: int) -> PolygonPool:
    """Moves polygons into the input, and packs those of all objects into one array.

    Objects with the fewest points come first where there is not room for all. An object without
    polygons, for which no room is left, or with over 32 polygons gets none.

    Args:
        polygons: the polygons of each object, in pixels of the picture.
        view: the view of the picture that the network sees.
        points: the room for points, of which each polygon takes one more than it has corners.
        rows: the number of rows of objects of the result.
    """
    counts = np.zeros(rows, np.int32)
    counts[: len(polygons)] = [_points(own) for own in polygons]
    fitting = _fitting(counts, points)
    counts[~fitting] = 0
    starts = np.where(counts > 0, np.cumsum(counts) - counts, 0).astype(np.int32)
    pool = PolygonPool(np.zeros((points, 2), np.float32), np.zeros(points, np.uint8), starts, counts)
    for row in np.flatnonzero(counts).tolist():
        place = int(starts[row])
        for part, outline in enumerate(polygons[row] or (), 1):
            corners = view.points_in_input(np.reshape(outline, (-1, 2)))
            end = place + len(corners)
            pool.points[place:end], pool.points[end] = corners, corners[0]
            pool.parts[place:end] = part
            place = end + 1
    return pool


def _points(polygons: ObjectPolygons) -> int:
    """Returns how many points an object takes; 0 if it cannot be drawn from its polygons."""
    if not polygons or len(polygons) > MOST_PARTS:
        return 0
    return sum(len(outline) // 2 + 1 for outline in polygons)


def _fitting(counts: Int[np.ndarray, "n"], room: int) -> np.ndarray:
    """Returns which objects are taken if those with the fewest points come first."""
    order = np.argsort(counts, kind="stable")
    fitting = np.empty(len(counts), bool)
    fitting[order] = np.cumsum(counts[order]) <= room
    return fitting
