"""The conversion of detections to the picture: masks, boxes, run lengths and polygons."""

import json

import numpy as np
import pytest
from goldens import post_processing
from pycocotools import mask as coco_mask

from jaxseg.data.views.placed import PlacedView
from jaxseg.evaluation.detect import Selected, to_picture
from jaxseg.evaluation.masks import decode_rle, encode_rle, masks_in_picture, polygons, within_picture
from jaxseg.structures import InputSpec, Resize

RUNS = ("yolact_resnet50", "yolact_base", "yolact_darknet53", "yolact_im400", "yolact_resnet50_pascal", "yolact_plus_resnet50")


# ---- Masks and boxes in the picture ----


def bilinear(soft_masks, picture_size):
    """Resizes by the definition in float64, with half-pixel centres and a repeated edge."""

    def weights(size, new_size):
        centers = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
        return np.maximum(1 - np.abs(centers[:, None] - np.arange(size)), 0)

    rows, columns = weights(soft_masks.shape[1], picture_size[0]), weights(soft_masks.shape[2], picture_size[1])
    return np.einsum("Hh,dhw,Ww->dHW", rows, soft_masks.astype(np.float64), columns)


def cropped_masks(rng, boxes, size):
    masks = rng.random((len(boxes), *size), dtype=np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[:y1], mask[y2:], mask[:, :x1], mask[:, x2:] = 0, 0, 0, 0
    return masks


@pytest.mark.parametrize("picture_size", [(33, 50), (480, 640), (20, 21), (9, 7), (150, 20), (1, 1)])
def test_masks_are_the_thresholded_bilinear_resize(picture_size):
    boxes = [(0, 0, 21, 20), (0, 0, 1, 1), (20, 19, 21, 20), (5, 6, 9, 18), (7, 7, 7, 7), (0, 9, 21, 10)]
    soft = cropped_masks(np.random.default_rng(0), boxes, (20, 21))
    expected = bilinear(soft, picture_size)
    decided = np.abs(expected - 0.5) > 1e-6
    masks = masks_in_picture(soft, picture_size)
    assert masks.dtype == bool
    assert masks.shape == (6, *picture_size)
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(masks[decided], (expected > 0.5)[decided])
    assert not masks[4].any()


def test_no_masks():
    assert masks_in_picture(np.zeros((0, 4, 4), np.float32), (6, 7)).shape == (0, 6, 7)


@pytest.mark.parametrize("run", RUNS)
def test_post_processing_is_the_originals(golden, run):
    post = post_processing(golden / "yolact" / f"{run}_s0")
    width, height = (int(side) for side in post["wh"])
    expected = np.unpackbits(post["masks_packed"], axis=1)[:, : height * width].reshape(-1, height, width).astype(bool)
    different = masks_in_picture(post["soft_masks"], (height, width)) != expected
    # The product of prototypes and coefficients is rounded differently, which changes few pixels.
    assert different.mean() < 1e-6
    # The original clips each corner on one side only, and then truncates it to whole pixels.
    whole = placed((height, width), (1, 1)).boxes_in_picture(post["fast_box"])
    np.testing.assert_array_equal(
        within_picture(whole, (height, width)).astype(np.int64), np.clip(post["boxes"], 0, (width, height, width, height))
    )


def placed(picture_size, image_size, input_size=(128, 128), frame="box", pixel_offset=0.0):
    """Makes a view of a picture that has this size within an input."""
    spec = InputSpec((input_size,), (28, 28), None, 2, Resize("opencv", (100,), 100), frame, pixel_offset)
    return PlacedView(spec, picture_size, input_size, image_size)


def found_boxes(boxes, view):
    return within_picture(view.boxes_in_picture(np.array(boxes)), view.picture_size, view.spec.pixel_offset)


def test_boxes_are_clipped_to_the_picture():
    boxes = [[-30.0, 10.0, -10.0, 20.0], [90.0, 95.0, 130.0, 50.0], [10.5, 10.5, 20.5, 20.5]]
    view = placed((100, 200), (100, 100))
    found = found_boxes(boxes, view)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 10, 0, 20], [180, 50, 200, 95], [21, 10.5, 41, 20.5]], rtol=1e-6)
    assert found_boxes(np.zeros((0, 4)), view).shape == (0, 4)


def test_boxes_that_end_in_their_last_pixel_become_continuous_at_picture_scale():
    """maskrcnn-benchmark scales the corners unchanged, and computes the width as x2 - x1 + 1."""
    # The last box is thinner than a pixel; without the offset its width would be negative.
    boxes = [[10.0, 20.0, 19.0, 59.0], [0.0, 0.0, 99.0, 99.0], [10.0, 20.0, 9.75, 20.0]]
    found = found_boxes(boxes, placed((50, 200), (100, 100), pixel_offset=1.0))
    np.testing.assert_allclose(found, [[20, 10, 39, 30.5], [0, 0, 199, 50], [20, 10, 20.5, 11]], rtol=1e-6)


def test_a_picture_at_its_own_size_keeps_every_bit_of_its_boxes():
    boxes = np.random.default_rng(0).uniform(0, 400, (1000, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    view = placed((801, 809), (801, 809), (832, 832))
    np.testing.assert_array_equal(found_boxes(boxes, view), np.clip(boxes, 0, [809, 801] * 2))


SOFT = np.random.default_rng(1).random((2, 28, 28), dtype=np.float32)


def in_picture(boxes, view, soft=SOFT):
    found = Selected(np.array(boxes, np.float32), np.ones(2, np.float32), np.zeros(2, np.int32), soft)
    return to_picture(found, view, view.spec)


def test_what_is_found_is_scaled_by_the_pictures_part_of_the_input():
    """The picture fills 60 x 80 of 96 x 128 cells, and each axis has its own scale."""
    boxes = [[8, 6, 40, 30], [0, 0, 80, 60]]
    for frame in ("image", "box", "integer_box"):
        view = placed((30, 160), (60, 80), (96, 128), frame)
        found, masks = in_picture(boxes, view)
        np.testing.assert_array_equal(found, [[16, 3, 80, 15], [0, 0, 160, 30]])
        assert masks.shape == (2, 30, 160)
        assert in_picture(boxes, view, soft=None)[1] is None


def test_a_mask_over_the_input_is_cut_to_the_picture():
    """Cells outside of the picture's part of the input are cropped; all others are kept in full."""
    soft = np.zeros((2, 48, 64), np.float32)
    soft[0, :30, :40] = 1
    soft[1, 30:], soft[1, :, 40:] = 1, 1
    _, masks = in_picture(np.zeros((2, 4)), placed((120, 160), (60, 80), (96, 128), "image"), soft=soft)
    # Bilinear interpolation mixes the last half cell with the cells beyond it.
    assert masks[0, :117, :157].all()
    assert not masks[1, :117, :157].any()


def test_a_mask_over_a_box_that_reaches_outside_is_cut_and_not_squeezed():
    view = placed((100, 100), (100, 100))
    boxes, masks = in_picture([[-28, 0, 28, 56], [72, 50, 128, 106]], view)
    _, moved = in_picture([[0, 0, 56, 56], [0, 0, 56, 56]], view)
    np.testing.assert_array_equal(boxes, [[0, 0, 28, 56], [72, 50, 100, 100]])
    np.testing.assert_array_equal(masks[0, :56, :28], moved[0, :56, 28:56])
    np.testing.assert_array_equal(masks[1, 50:, 72:], moved[1, :50, :28])


def test_masks_of_boxes_that_end_in_their_last_pixel():
    """maskrcnn-benchmark stretches masks over such boxes; sampled masks include the last pixel."""
    full = np.ones((2, 28, 28), np.float32)
    boxes = [[10, 20, 37, 47], [50, 50, 50, 50]]
    _, masks = in_picture(boxes, placed((100, 100), (100, 100), pixel_offset=1.0), soft=full)
    assert [int(mask.sum()) for mask in masks] == [28 * 28, 1]
    stretched, continuous = (
        in_picture(boxes, placed((100, 100), (100, 100), frame="integer_box", pixel_offset=offset))[1] for offset in (1.0, 0.0)
    )
    np.testing.assert_array_equal(stretched, continuous)


# ---- Run lengths and polygons ----


def shapes_to_encode():
    y, x = np.mgrid[:30, :40]
    ring = ((x - 20) ** 2 + (y - 15) ** 2 < 144) & ((x - 20) ** 2 + (y - 15) ** 2 > 36)
    return np.stack([np.zeros((30, 40), bool), np.ones((30, 40), bool), ring, np.random.default_rng(0).random((30, 40)) > 0.5])


def test_run_lengths_are_cocos_and_come_back():
    masks = shapes_to_encode()
    rles = encode_rle(masks)
    expected = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    assert [rle["counts"] for rle in rles] == [rle["counts"].decode() for rle in expected]
    assert json.loads(json.dumps(rles)) == rles
    np.testing.assert_array_equal(decode_rle(rles), masks)
    assert encode_rle(masks[:0]) == []


def area(polygon):
    x, y = np.array(polygon).reshape(-1, 2).T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_polygons_follow_the_edges_of_pixels():
    mask = np.zeros((6, 9), bool)
    mask[1, 2] = True
    mask[3:6, 4:9] = True
    single, block = sorted(polygons(mask), key=area)
    assert sorted(zip(single[::2], single[1::2], strict=True)) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert sorted(zip(block[::2], block[1::2], strict=True)) == [(4, 3), (4, 6), (9, 3), (9, 6)]
    assert polygons(np.zeros((6, 9), bool)) == []


def test_polygons_fill_holes_and_keep_everything_else():
    ring = shapes_to_encode()[2]
    y, x = np.mgrid[:30, :40]
    disc = (x - 20) ** 2 + (y - 15) ** 2 < 144
    (outline,) = polygons(ring)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([outline], 30, 40))).astype(bool)
    np.testing.assert_array_equal(drawn, disc)
