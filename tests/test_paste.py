"""Pasting masks over boxes into the picture: the originals' results, and boxes anywhere."""

from pathlib import Path

import numpy as np
import pytest
from goldens import load_arrays

from jaxseg.data.views.placed import PlacedView
from jaxseg.evaluation.detect import Selected, to_picture
from jaxseg.evaluation.paste import paste_masks
from jaxseg.structures import InputSpec, Resize

DATA = Path(__file__).parent / "data" / "two_stage" / "paste.npz"
FRAMES = {"detectron2": "box", "mmdetection": "box", "maskrcnn_benchmark": "integer_box", "torchvision": "integer_box"}

# The input of maskrcnn-benchmark.
SPEC = InputSpec(((320, 448),), (28, 28), None, 80, Resize("pillow_truncated", (800,), 1333), "integer_box", 1.0)


def unpacked(bits, width):
    return np.unpackbits(bits, axis=-1, count=width).astype(bool)


@pytest.mark.parametrize(("original", "frame"), FRAMES.items())
def test_pasted_masks_are_the_originals(original, frame):
    """The 8 boxes are thinner than a pixel, or beyond one side of the picture, or ordinary."""
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
    """All pixels of the masks of 100 detections in each picture are equal."""
    data = load_arrays(golden / "two_stage" / f"{name}_maskrcnn.npz")
    soft, pasted = soft.format(image), pasted.format(image)
    masks = paste_masks(data[soft], data.kept(data[boxes.format(image)], soft), sizes[image], frame)
    np.testing.assert_array_equal(masks, unpacked(data[pasted], sizes[image][1]))


@pytest.mark.parametrize("image", [0, 1])
def test_boxes_are_scaled_as_maskrcnn_benchmark_does(golden, image):
    data = load_arrays(golden / "two_stage" / "mrb_maskrcnn.npz")
    image_size, picture_size = (((320, 416), (480, 624)), ((250, 340), (375, 510)))[image]
    view = PlacedView(SPEC, picture_size, (320, 448), image_size)
    np.testing.assert_array_equal(view.boxes_in_picture(data[f"det_boxes{image}"]), data[f"det_boxes_x15_{image}"])


def dense(mask, positions_y, positions_x):
    """Samples by the definition in float64, bilinearly between cells, with 0 outside."""

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
    # The masks are 0 beyond the whole pixels of the box.
    return np.where((np.arange(length) >= first) & (np.arange(length) < first + size), positions, -9)


@pytest.mark.parametrize(("frame", "positions"), [("box", sampled), ("integer_box", stretched)])
def test_pasting_is_the_thresholded_sampling(frame, positions):
    """Boxes are larger or smaller than the masks' cells, and inside or outside of the picture."""
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
    # In the middle, the interpolation mixes only values of 0.5.
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
    """Boxes and masks go from the network's input to a picture of 1.5 times the size."""
    data = load_arrays(golden / "two_stage" / "mrb_maskrcnn.npz")
    image_size, picture_size = (((320, 416), (480, 624)), ((250, 340), (375, 510)))[image]
    cells = f"det_masks28_{image}"
    names = (f"det_boxes{image}", f"det_scores{image}", f"det_labels{image}", f"det_boxes_x15_{image}")
    corners, scores, labels, larger = (data.kept(data[name], cells) for name in names)
    found = Selected(corners, scores, labels - 1, data[cells])
    boxes, masks = to_picture(found, PlacedView(SPEC, picture_size, (320, 448), image_size), SPEC)
    expected = larger + np.float32([0, 0, 1, 1])
    np.testing.assert_array_equal(boxes, np.minimum(expected, np.float32(picture_size[::-1] * 2)))
    np.testing.assert_array_equal(masks, unpacked(data[f"det_masks_x15_{image}_packed"], picture_size[1]))
