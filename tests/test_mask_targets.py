"""Mask targets from crops: exact areas, and the differences from the originals' targets."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from goldens import load_arrays

from jaxseg.data.views.box_masks import crop_masks
from jaxseg.ops.masks import box_mask_targets

CROP = 112


run = jax.jit(box_mask_targets, static_argnums=3)


def targets(crop: list, frame: list[float], roi: list[float], size: int) -> np.ndarray:
    arrays = (np.array([value], np.float32) for value in (crop, frame, roi))
    return np.asarray(run(*arrays, size))[0]


def test_a_cell_is_the_part_that_the_mask_covers() -> None:
    crop, frame = [[1, 0], [0, 1]], [10, 20, 14, 28]
    np.testing.assert_allclose(targets(crop, frame, frame, 2), crop)
    np.testing.assert_allclose(targets(crop, frame, frame, 1), [[0.5]])
    # The region is shifted to the right by half a cell of the crop.
    np.testing.assert_allclose(targets(crop, frame, [11, 20, 15, 28], 2), [[0.5, 0], [0.5, 0.5]])
    # One RoI is within one cell, and the other has twice the frame's size, with 0 outside of it.
    np.testing.assert_allclose(targets(crop, frame, [10.5, 21, 11.5, 23], 2), np.ones((2, 2)))
    np.testing.assert_allclose(targets(crop, frame, [8, 16, 16, 32], 4), np.pad(crop, 1))


def test_nothing_comes_of_boxes_without_area() -> None:
    crop, frame = np.ones((4, 4)).tolist(), [10, 20, 14, 28]
    for empty in ([12, 22, 12, 26], [12, 22, 13, 22], [13, 22, 12, 26], [0, 0, 0, 0]):
        np.testing.assert_array_equal(targets(crop, frame, empty, 3), 0.0)
        np.testing.assert_array_equal(targets(crop, empty, frame, 3), 0.0)
    np.testing.assert_array_equal(targets(crop, frame, [14, 28, 18, 30], 3), 0.0)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


# The parameters are the mask IoU over all eight objects, and the shift of the RoI. The originals'
# own two ways, polygons and bitmaps, agree to 0.976. torchvision samples bitmaps with its unaligned
# RoIAlign, which is shifted by half a pixel to the right and down.
@pytest.mark.parametrize(
    ("original", "shift", "least"),
    [("mrb_poly", 0, 0.975), ("d2_poly", 0, 0.975), ("d2_bitmask", 0, 0.99), ("mmdet_bitmap", 0, 0.99), ("tv", 0.5, 0.985)],
)
def test_crops_instead_of_polygons_and_bitmaps(golden: Path, original: str, shift: float, least: float) -> None:
    numbers = load_arrays(golden / "two_stage" / "mask_ops.npz")
    corners = [np.concatenate([np.reshape(part, (-1, 2)) for part in parts]) for parts in json.loads(str(numbers["polys_json"]))]
    frames = np.array([[*points.min(0), *points.max(0)] for points in corners], np.float32)
    crops = crop_masks(numbers["bitmaps"], np.arange(len(frames)), frames, (CROP, CROP)).astype(np.float32)
    theirs = numbers[f"{original}_target28"]
    ours = np.asarray(run(crops, frames, numbers["boxes_clipped"] + np.float32(shift), 28))
    assert overlap(ours >= 0.5, theirs >= 0.5) > least
    if original == "tv":
        assert np.abs(ours - theirs).mean() < 0.01
