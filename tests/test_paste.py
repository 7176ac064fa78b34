"""Masks over boxes back in the picture: what the four originals paste, pixel by pixel, and boxes that lie anywhere."""

from pathlib import Path

import numpy as np
import pytest

from jaxseg.evaluation.detect import Selected, Sizes, to_picture
from jaxseg.evaluation.masks import scaled_boxes
from jaxseg.evaluation.paste import paste_masks
from jaxseg.structures import InputSpec

DATA = Path(__file__).parent / "data" / "two_stage" / "paste.npz"
FRAMES = {"detectron2": "box", "mmdetection": "box", "maskrcnn_benchmark": "integer_box", "torchvision": "integer_box"}


def unpacked(bits, width):
    return np.unpackbits(bits, axis=-1, count=width).astype(bool)


@pytest.mark.parametrize(("original", "frame"), FRAMES.items())
def test_pasted_masks_are_the_originals(original, frame):
    """8 masks: thinner than a pixel, out of the picture on each side, and ordinary ones."""
    data = np.load(DATA)
    height, width = data["size"]
    masks = paste_masks(data["masks"], data["boxes"], (height, width), frame)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, unpacked(data[original], width))


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize(
    ("name", "soft", "boxes", "pasted", "frame", "sizes"),
    [
        ("tv", "mask_prob28_{}", "det_boxes{}", "det_masks{}_packed", "integer_box", ((320, 416), (250, 340))),
        ("d2", "raw_masks28_{}", "det_boxes{}", "det_masks{}_packed", "box", ((480, 624), (375, 510))),
        ("mrb", "det_masks28_{}", "det_boxes_x15_{}", "det_masks_x15_{}_packed", "integer_box", ((480, 624), (375, 510))),
    ],
)
def test_all_masks_of_whole_models_are_the_originals(golden, name, soft, boxes, pasted, frame, sizes, image):
    """100 detections of each picture, not one pixel of which differs."""
    data = np.load(golden / "two_stage" / f"{name}_maskrcnn.npz")
    masks = paste_masks(data[soft.format(image)], data[boxes.format(image)], sizes[image], frame)
    np.testing.assert_array_equal(masks, unpacked(data[pasted.format(image)], sizes[image][1]))


@pytest.mark.parametrize("image", [0, 1])
def test_boxes_are_scaled_as_maskrcnn_benchmark_does(golden, image):
    data = np.load(golden / "two_stage" / "mrb_maskrcnn.npz")
    size, larger = (((320, 416), (480, 624)), ((250, 340), (375, 510)))[image]
    np.testing.assert_array_equal(scaled_boxes(data[f"det_boxes{image}"], size, larger), data[f"det_boxes_x15_{image}"])


def dense(mask, positions_y, positions_x):
    """The definition in float64: bilinear between cells, nothing outside."""

    def weights(positions, cells):
        return np.maximum(1 - np.abs(positions[:, None] - np.arange(cells)), 0)

    return weights(positions_y, mask.shape[0]) @ mask.astype(np.float64) @ weights(positions_x, mask.shape[1]).T


def sampled(low, high, cells, length):
    return (np.arange(length) + 0.5 - low) / (high - low) * cells - 0.5


def stretched(low, high, cells, length):
    centre, half = (low + high) / 2, (high - low) / 2 * (cells + 2) / cells
    first, last = int(np.trunc(centre - half)), int(np.trunc(centre + half))
    size = max(last - first + 1, 1)
    positions = (np.arange(length) - first + 0.5) * (cells + 2) / size - 1.5
    # Nothing is written beyond the whole pixels of the box.
    return np.where((np.arange(length) >= first) & (np.arange(length) < first + size), positions, -9)


@pytest.mark.parametrize(("frame", "positions"), [("box", sampled), ("integer_box", stretched)])
def test_pasting_is_the_thresholded_sampling(frame, positions):
    """Any mask, square or not, in boxes larger and smaller than its cells, in the picture and out of it."""
    rng = np.random.default_rng(0)
    size = (70, 90)
    corners = rng.uniform(-40, 110, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.3, 120, (60, 2))], axis=1).astype(np.float32)
    soft = rng.random((60, 9, 14), dtype=np.float32)
    found = paste_masks(soft, boxes, size, frame)
    decided = 0
    for mask, (x1, y1, x2, y2), pasted in zip(soft, boxes.astype(np.float64), found, strict=True):
        expected = dense(mask, positions(y1, y2, 9, size[0]), positions(x1, x2, 14, size[1]))
        clear = np.abs(expected - 0.5) > 1e-5
        decided += clear.mean() / len(soft)
        np.testing.assert_array_equal(pasted[clear], (expected > 0.5)[clear])
    assert decided > 0.99
    assert 0.02 < found.mean() < 0.5


def test_one_half_is_kept_by_those_who_sample_and_dropped_by_those_who_stretch():
    soft = np.full((1, 28, 28), 0.5, np.float32)
    box = np.array([[10.0, 5.0, 24.0, 19.0]])
    # In the middle all that is mixed is 0.5.
    assert paste_masks(soft, box, (30, 40), "box")[0, 7:17, 12:22].all()
    assert not paste_masks(soft, box, (30, 40), "integer_box").any()


def test_a_full_mask_fills_the_pixels_whose_centres_lie_in_the_box():
    soft = np.ones((3, 28, 28), np.float32)
    boxes = np.array([[10.0, 5.0, 24.0, 19.0], [10.3, 5.3, 24.7, 19.7], [-50.0, -50.0, 200.0, 200.0]])
    masks = paste_masks(soft, boxes, (30, 40), "box")
    expected = np.zeros((30, 40), bool)
    expected[5:19, 10:24] = True
    np.testing.assert_array_equal(masks[0], expected)
    expected[5:20, 10:25] = True
    np.testing.assert_array_equal(masks[1], expected)
    assert masks[2].all()


@pytest.mark.parametrize("frame", ["box", "integer_box"])
def test_boxes_without_a_place_in_the_picture_are_empty(frame):
    boxes = np.array(
        [[-90, 5, -40, 9], [50, 5, 90, 9], [5, -90, 9, -40], [5, 50, 9, 90], [np.nan, 5, 9, 9], [5, 5, np.inf, 9], [1e9, 1e9, 3e9, 3e9]]
    )
    assert not paste_masks(np.ones((len(boxes), 28, 28)), boxes, (30, 40), frame).any()
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (30, 40), frame).shape == (0, 30, 40)


def test_a_box_without_area_is_empty_or_a_pixel():
    soft, box = np.ones((1, 28, 28)), np.array([[7.5, 7.5, 7.5, 7.5]])
    assert paste_masks(soft, box, (30, 40), "box").sum() == 0
    assert paste_masks(soft, box, (30, 40), "integer_box").sum() == 1


@pytest.mark.parametrize("image", [0, 1])
def test_the_way_back_to_a_larger_picture_is_maskrcnn_benchmarks(golden, image):
    """Boxes that end in their last pixel, and masks over them, from the network's input to a picture of 1.5 times the size."""
    data = np.load(golden / "two_stage" / "mrb_maskrcnn.npz")
    fitted, picture = (((320, 416), (480, 624)), ((250, 340), (375, 510)))[image]
    spec = InputSpec(((320, 448),), (28, 28), None, 80, mask_frame="integer_box", pixel_offset=1.0)
    scores, classes = data[f"det_scores{image}"], data[f"det_labels{image}"] - 1
    found = Selected(data[f"det_boxes{image}"], scores, classes, data[f"det_masks28_{image}"])
    boxes, masks = to_picture(found, Sizes(picture, fitted, (320, 448)), spec)
    expected = data[f"det_boxes_x15_{image}"] + np.float32([0, 0, 1, 1])
    np.testing.assert_array_equal(boxes, np.minimum(expected, np.float32(picture[::-1] * 2)))
    np.testing.assert_array_equal(masks, unpacked(data[f"det_masks_x15_{image}_packed"], picture[1]))
