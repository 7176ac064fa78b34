"""Pictures that keep their proportions: boxes, mirroring as in the originals, and box masks."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxseg.config import MIRROR_ONLY, Config, ConfigError, override
from jaxseg.data.inspection import as_seen
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.stream.targets import no_targets, to_targets
from jaxseg.data.views.box_masks import crop_masks
from jaxseg.data.views.placed import PlacedRule, PlacedView
from jaxseg.data.views.resize import resize_pixels
from jaxseg.models import RcnnConfig, YolactConfig
from jaxseg.structures import InputSpec, Resize

GOLDEN = dict(np.load(Path(__file__).parent / "data" / "two_stage" / "input.npz"))


def spec(rule="opencv", pixel_offset=0.0, mask_size=(32, 32), shorter_sides=(96, 128)) -> InputSpec:
    return InputSpec(((128, 192), (192, 128)), mask_size, None, 3, Resize(rule, shorter_sides, 192), "box", pixel_offset)


def sample() -> Sample:
    """Makes a dark picture of 90 x 120 with a bright ellipse, a crowd region and a thin object."""
    masks = np.zeros((3, 90, 120), np.uint8)
    cv2.ellipse(masks[0], (40, 45), (30, 15), 25, 0, 360, 1, -1)
    masks[1, 60:90, 80:120] = 1
    masks[2, 10, 5:25] = 1
    boxes = [(x, y, x + width, y + height) for x, y, width, height in map(cv2.boundingRect, masks)]
    image = np.full((90, 120, 3), 20, np.uint8)
    image[masks[0] > 0] = 220
    return Sample(image, np.array(boxes, np.float32), np.array((2, 0, 1), np.int32), np.array((False, True, False)), masks, 5)


def view(picture_size, image_size, mirror=False, pixel_offset=0.0, rule="opencv", **changes) -> PlacedView:
    return PlacedView(spec(rule, pixel_offset, **changes), picture_size, (128, 192), image_size, mirror)


def draw(seed, source: Sample, augment, one: InputSpec) -> PlacedView:
    return PlacedRule(one).draw(np.random.default_rng(seed), source.picture_size, boxes=source.boxes, crowd=source.crowd, augment=augment)


def whole_targets(one: InputSpec, rows: int):
    return to_targets(sample(), PlacedRule(one).whole((90, 120)), one, rows)


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    return (mask & other).sum() / (mask | other).sum()


@pytest.mark.parametrize(("original", "pixel_offset"), [("mmdet", 0), ("d2", 0), ("mrb", 1)])
def test_mirrored_boxes_are_the_originals(original, pixel_offset):
    size = (120, int(GOLDEN["flip_w"]))
    annotated = GOLDEN["flip_in"] + np.array((0, 0, pixel_offset, pixel_offset), np.float32)
    plain, mirrored = (view(size, size, mirror, pixel_offset).boxes_in_input(annotated) for mirror in (False, True))
    np.testing.assert_array_equal(mirrored, GOLDEN[f"flip_{original}"])
    np.testing.assert_array_equal(plain, GOLDEN["flip_in"])


def test_boxes_are_scaled_by_each_side_and_mirrored_after_that():
    """As in maskrcnn-benchmark, x2 = (4 + 6 - 1) * 2 = 18, and its mirror is 200 - 18 - 1."""
    box = np.array([(4, 10, 10, 20)], np.float32)
    np.testing.assert_allclose(view((50, 100), (150, 200), False, 1).boxes_in_input(box), [(8, 30, 18, 57)])
    np.testing.assert_allclose(view((50, 100), (150, 200), True, 1).boxes_in_input(box), [(181, 30, 191, 57)])
    np.testing.assert_allclose(view((50, 100), (150, 200), True, 0).boxes_in_input(box), [(180, 30, 192, 60)])


def test_boxes_are_clipped_to_the_picture():
    """They are clipped to W and H, or to the last pixel."""
    box = np.array([(-5, -5, 130, 95)], np.float32)
    np.testing.assert_array_equal(view((90, 120), (90, 120)).boxes_in_input(box), [(0, 0, 120, 90)])
    np.testing.assert_array_equal(view((90, 120), (90, 120), pixel_offset=1).boxes_in_input(box), [(0, 0, 119, 89)])


@pytest.mark.parametrize(
    ("x", "width", "pixel_offset", "usable"),
    [
        (10.13, 1.0, 0, True),
        (10.13, 0.99, 0, False),  # mmdetection drops boxes with a side of less than a pixel.
        (10.13, 1.0, 1, False),  # In maskrcnn-benchmark, this box ends where it starts.
        (10.13, 1.5, 1, True),
        (119.5, 3.0, 0, True),
        (120.0, 3.0, 0, False),  # This box is outside of the picture.
        (119.0, 3.0, 1, False),  # This box covers only the last column.
    ],
)
def test_objects_without_area_go(x, width, pixel_offset, usable):
    wide = np.array([(x, 10, x + width, 20)], np.float32)
    assert view((90, 120), (90, 120), pixel_offset=pixel_offset).keeps(wide).tolist() == [usable]
    assert view((120, 90), (120, 90), pixel_offset=pixel_offset).keeps(wide[:, [1, 0, 3, 2]]).tolist() == [usable]


def test_the_side_and_the_mirror_are_drawn_evenly():
    source, one = sample(), spec(shorter_sides=(64, 96, 128))
    drawn = [draw(seed, source, MIRROR_ONLY, one) for seed in range(1200)]
    heights, counts = np.unique([drawn_view.image_size[0] for drawn_view in drawn], return_counts=True)
    assert heights.tolist() == [64, 96, 128]
    assert counts.min() > 340
    assert 540 < sum(drawn_view.mirror for drawn_view in drawn) < 660
    still = dataclasses.replace(MIRROR_ONLY, mirror=False)
    assert not any(draw(seed, source, still, one).mirror for seed in range(20))


@pytest.mark.parametrize("rule", ["opencv", "pillow", "pillow_truncated", "float"])
def test_the_picture_is_mirrored_where_it_lies(rule):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    plain, mirrored = (view((90, 120), (96, 128), mirror, rule=rule).training_image(image) for mirror in (False, True))
    assert (plain.shape, plain.dtype) == ((128, 192, 3), np.uint8)
    np.testing.assert_array_equal(mirrored[:96, :128], plain[:96, 127::-1])
    np.testing.assert_allclose(plain[:96, :128], resize_pixels(image, (96, 128), rule), atol=0.5)
    for padded in (plain, mirrored):
        assert not padded[96:].any()
        assert not padded[:, 128:].any()


def test_colours_change_where_the_config_asks_for_it():
    source, coloured = sample(), dataclasses.replace(MIRROR_ONLY, photometric=True, mirror=False)
    pictures = [draw(seed, source, coloured, spec()).training_image(source.image) for seed in range(4)]
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert all(not picture[128:].any() for picture in pictures)


@pytest.mark.parametrize("step", ["expand", "crop"])
def test_steps_that_belong_to_a_stretched_input_are_refused(step):
    rcnn = {"model": RcnnConfig(), "data.augment": dataclasses.replace(MIRROR_ONLY, photometric=True)}
    override(Config(model=YolactConfig()), rcnn)
    sentence = rf"config.data.augment.{step} = True is out of range; it must be False for rcnn, which keeps the picture's proportions"
    with pytest.raises(ConfigError, match=sentence):
        override(Config(model=YolactConfig()), {**rcnn, f"data.augment.{step}": True})


def ellipse(scale: float) -> tuple[np.ndarray, tuple[float, ...]]:
    """Makes the mask of an ellipse, and its box with corners between the pixels."""
    mask = np.zeros((420, 420), np.uint8)
    cv2.ellipse(mask, (210, 210), (int(16 * scale), int(9 * scale)), 30, 0, 360, 1, -1)
    x, y, width, height = cv2.boundingRect(mask)
    return mask, (x - 0.3, y + 0.2, x + width + 0.4, y + height - 0.1)


def positions(frame: tuple[float, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows and the columns of `count` points along each side of a frame."""
    x1, y1, x2, y2 = frame
    where = (np.arange(count) + 0.5) / count
    return y1 + where * (y2 - y1), x1 + where * (x2 - x1)


@pytest.mark.parametrize("scale", [4.0, 11.0])
def test_large_objects_have_the_cells_that_they_cover_half_of(scale):
    """The reference has 1024 points per cell; cells that are nearly half covered may differ."""
    mask, frame = ellipse(scale)
    (crop,) = crop_masks(mask[None], np.array([0]), np.array([frame]), (32, 32))
    rows, columns = (np.floor(points).astype(int) for points in positions(frame, 32 * 32))
    covered = mask[rows][:, columns].reshape(32, 32, 32, 32).mean((1, 3))
    clear = np.abs(covered - 0.5) > 0.1
    np.testing.assert_array_equal(crop[clear], covered[clear] > 0.5)
    assert overlap(crop, covered >= 0.5) > 0.98


@pytest.mark.parametrize("scale", [0.2, 0.9])
def test_small_objects_are_interpolated(scale):
    mask, frame = ellipse(scale)
    (crop,) = crop_masks(mask[None], np.array([0]), np.array([frame]), (32, 32))
    rows, columns = positions(frame, 32)
    x, y = np.meshgrid((columns - 0.5).astype(np.float32), (rows - 0.5).astype(np.float32))
    between = cv2.remap(mask.astype(np.float32), x, y, cv2.INTER_LINEAR)
    # OpenCV interpolates at 32 positions between two pixels.
    clear = np.abs(between - 0.5) > 1 / 16
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(crop[clear], between[clear] > 0.5)


def test_a_crop_on_the_pixels_of_a_mask_is_the_mask():
    mask = np.random.default_rng(0).integers(0, 2, (1, 60, 60), dtype=np.uint8)
    (crop,) = crop_masks(mask, np.array([0]), np.array([(10.0, 20, 42, 52)]), (32, 32))
    np.testing.assert_array_equal(crop, mask[0, 20:52, 10:42])
    (crop,) = crop_masks(mask, np.array([0]), np.array([(10.0, 20, 42, 52)]), (32, 32), mirror=True)
    np.testing.assert_array_equal(crop, mask[0, 20:52, 10:42][:, ::-1])


def test_beyond_the_picture_its_edge_goes_on():
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, :, 18:] = 1
    (crop,) = crop_masks(mask, np.array([0]), np.array([(12.0, 0, 28, 20)]), (8, 8))
    np.testing.assert_array_equal(crop, [[False] * 3 + [True] * 5] * 8)


def test_a_crop_costs_nothing_for_the_picture_and_little_for_the_object():
    """For an object in a mask of 2.5 gigabytes, only the object's own rows take memory."""
    row = np.zeros(50_000, np.uint8)
    row[20_000:20_150] = 1
    mask = np.broadcast_to(row, (1, 50_000, 50_000))
    tracemalloc.start()
    (small,) = crop_masks(mask, np.array([0]), np.array([(20_000.0, 7, 20_300, 307)]), (112, 112))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    (large,) = crop_masks(mask, np.array([0]), np.array([(0.0, 0, 50_000, 50_000)]), (112, 112))
    assert tracemalloc.get_traced_memory()[1] < 5e7
    tracemalloc.stop()
    np.testing.assert_array_equal(small, [[True] * 56 + [False] * 56] * 112)
    assert not large.any()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("pixel_offset", [0, 1])
@pytest.mark.parametrize("rule", ["opencv", "pillow_truncated"])
def test_targets_put_each_mask_over_its_box_in_the_input(rule, pixel_offset, mirror):
    """A crop that is resized to its box, with the last pixel included, is the mask in the input."""
    source = sample()
    placed = view((90, 120), (128, 170), mirror, pixel_offset, rule, mask_size=(64, 64))
    targets = to_targets(source, placed, placed.spec, 6)
    # If boxes end in their last pixel, the object of one row has no area.
    assert targets.valid.tolist() == [True, True, pixel_offset == 0, False, False, False]
    assert targets.crowd.tolist()[:2] == [False, True]
    assert targets.classes.tolist()[:2] == [2, 0]
    seen = as_seen(source, placed, placed.spec)
    for row in range(2):
        x1, y1, x2, y2 = targets.boxes[row] + np.array((0, 0, pixel_offset, pixel_offset))
        crop = np.unpackbits(targets.masks[row], axis=-1)
        ys, xs = np.mgrid[:128, :192] + 0.5
        inside = (xs > x1) & (xs < x2) & (ys > y1) & (ys < y2)
        cells = ((ys - y1) / (y2 - y1) * 64, (xs - x1) / (x2 - x1) * 64)
        spread = inside & (crop[tuple(np.clip(np.floor(cell), 0, 63).astype(int) for cell in cells)] > 0)
        assert overlap(spread, (seen.masks[row] > 0) & inside) > 0.96
    # The crowd fills its box; the frame leaves out less than a pixel of the box on one side.
    assert overlap(inside, seen.masks[1] > 0) > 0.95
    bright = seen.image[..., 0] > 120
    assert overlap(bright, seen.masks[0] > 0) > 0.95


def test_frames_of_masks_are_the_annotated_boxes():
    boxes = np.array([(4, 10, 10, 20), (0, 0, 100, 50)], np.float32)
    for mirror in (False, True):
        placed = view((50, 100), (150, 200), mirror)
        np.testing.assert_allclose(placed.mask_frames(placed.boxes_in_input(boxes)), boxes)
    # At a scale of 2, the last pixel of the box is half a pixel of the picture.
    placed = view((50, 100), (100, 200), pixel_offset=1)
    np.testing.assert_allclose(placed.mask_frames(placed.boxes_in_input(boxes[:1])), [(4, 10, 9.5, 19.5)])


def test_a_detector_without_masks_gets_none():
    without = spec(mask_size=None)
    for targets in (whole_targets(without, 4), no_targets(without, 4, (128, 192))):
        assert targets.masks is None
        assert targets.semantic is None
    empty = no_targets(spec(), 4, (128, 192))
    assert (empty.masks.shape, empty.semantic) == ((4, 32, 4), None)
    assert not empty.valid.any()


def test_a_full_image_keeps_its_largest_objects():
    targets = whole_targets(spec(), 2)
    # Ordinary objects are kept before the crowd.
    assert targets.classes.tolist() == [2, 1]
    assert targets.valid.all()


def region_target(values: np.ndarray) -> np.ndarray:
    """Returns 28 x 28 cells of 8 x 8 points; a cell is set if at least half are in the object."""
    return values.reshape(28, 8, 28, 8).mean((1, 3)) >= 0.5


def test_targets_from_crops_agree_with_polygons_as_well_as_bitmaps_do(coco_mini):
    """The originals draw polygons over each region, or interpolate the picture's bitmap there."""
    content = json.loads((coco_mini / "annotations" / "instances_train2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    rng = np.random.default_rng(0)
    agreement = []
    for entry in content["annotations"]:
        if not isinstance(entry["segmentation"], list) or min(entry["bbox"][2:]) < 2:
            continue
        height, width = sizes[entry["image_id"]]
        x, y, box_width, box_height = entry["bbox"]
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(entry["segmentation"], height, width)))
        region = np.array((x, y, x + box_width, y + box_height)) + rng.uniform(-0.15, 0.15, 4) * np.tile((box_width, box_height), 2)
        scale = 28 / (region[2:] - region[:2])
        polygons = [((np.reshape(polygon, (-1, 2)) - region[:2]) * scale).ravel().tolist() for polygon in entry["segmentation"]]
        truth = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 28, 28))) > 0

        rows, columns = positions(tuple(region), 28 * 8)
        (crop,) = crop_masks(mask[None], np.array([0]), np.array([(x, y, x + box_width, y + box_height)]), (112, 112))
        grid = np.meshgrid((columns - x) / box_width * 112 - 0.5, (rows - y) / box_height * 112 - 0.5)
        from_crop = cv2.remap(crop.astype(np.float32), *(axis.astype(np.float32) for axis in grid), cv2.INTER_LINEAR)
        grid = np.meshgrid(columns - 0.5, rows - 0.5)
        from_bitmap = cv2.remap(mask.astype(np.float32), *(axis.astype(np.float32) for axis in grid), cv2.INTER_LINEAR)
        if truth.any():
            agreement.append([overlap(region_target(values), truth) for values in (from_crop, from_bitmap)])
    crop, bitmap = np.mean(agreement, axis=0)
    assert len(agreement) > 700
    assert bitmap > 0.95
    assert crop > bitmap - 0.003
