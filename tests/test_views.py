"""Both kinds of views with both kinds of masks, from the picture to the input and back."""

import dataclasses

import cv2
import numpy as np
import pytest
from binary_masks import resize_binary_masks
from tiny_pictures import FakeDataset

from jaxseg.config import MIRROR_ONLY, AugmentConfig
from jaxseg.data.inspection import as_seen
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.stream.evaluation import evaluation_batches
from jaxseg.data.stream.targets import no_targets, to_targets
from jaxseg.data.stream.training import TrainingLoader
from jaxseg.data.views.from_spec import view_rule
from jaxseg.evaluation.detect import Selected, to_picture
from jaxseg.structures import InputSpec, Resize

# The inputs for landscapes and portraits. Masks have a cell for 4 x 4 pixels, semantic masks for
# 8 x 8.
INPUT_SIZES = ((128, 192), (192, 128))
LETTERBOXED = InputSpec(INPUT_SIZES, (32, 48), (16, 24), 3, Resize("opencv", (96, 128), 192))
STRETCHED = InputSpec(((160, 160),), (40, 40), (20, 20), 3)
SPECS = {
    "stretched, masks over the input": STRETCHED,
    "stretched, masks over boxes": dataclasses.replace(STRETCHED, mask_size=(56, 56), mask_frame="box"),
    "placed, masks over the input": LETTERBOXED,
    "placed, masks over boxes": dataclasses.replace(LETTERBOXED, mask_size=(56, 56), mask_frame="box"),
}
PICTURE_SIZES = [(90, 121), (121, 90)]
# Colours are not changed, so that bright objects can be recognised.
STEPS = {"stretched": AugmentConfig(photometric=False), "placed": MIRROR_ONLY}


def scene(picture_size: tuple[int, int] = (90, 121)) -> Sample:
    """Makes a dark picture with bright ellipses.

    The second is a crowd, and the third overlaps the first.
    """
    masks = np.zeros((3, *picture_size), np.uint8)
    for mask, centre, axes in zip(masks, [(38, 40), (70, 70), (50, 45)], [(26, 14), (13, 17), (17, 20)], strict=True):
        cv2.ellipse(mask, centre, axes, 25, 0, 360, 1, -1)
    boxes = [(x, y, x + width, y + height) for x, y, width, height in map(cv2.boundingRect, masks)]
    image = np.where(masks.any(0)[:, :, None], np.uint8(230), np.uint8(10)).repeat(3, axis=2)
    return Sample(image, np.array(boxes, np.float32), np.array((2, 0, 2), np.int32), np.array((False, True, False)), masks, 5)


def views(name: str, picture: Sample, count: int = 8):
    """Yields the view of the whole picture, and random views."""
    rule, steps = view_rule(SPECS[name]), STEPS[name.split(",")[0]]
    drawn = [
        rule.draw(np.random.default_rng(seed), picture.picture_size, boxes=picture.boxes, crowd=picture.crowd, augment=steps)
        for seed in range(count)
    ]
    assert {view.mirror for view in drawn} == {False, True}
    return [rule.whole(picture.picture_size), *drawn]


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    return (mask & other).sum() / max((mask | other).sum(), 1)


def bits(packed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.unpackbits(packed, axis=-1, count=size[1]).astype(bool)


def spread(cells: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes cells over a box to pixels of an image of this size, which is 0 outside the box."""
    x1, y1, x2, y2 = box
    rows, columns = (np.arange(length) + 0.5 for length in size)
    inside = ((rows > y1) & (rows < y2))[:, None] & ((columns > x1) & (columns < x2))
    row = np.clip((rows - y1) / (y2 - y1) * cells.shape[0], 0, cells.shape[0] - 1).astype(int)
    column = np.clip((columns - x1) / (x2 - x1) * cells.shape[1], 0, cells.shape[1] - 1).astype(int)
    return cells[row][:, column] & inside


# ---- From the picture to the input and back ----


@pytest.mark.parametrize("picture_size", PICTURE_SIZES)
@pytest.mark.parametrize("name", SPECS)
def test_boxes_come_back_from_the_input(name, picture_size):
    """Boxes in the visible part return unchanged, and so do the frames of their masks."""
    picture = scene(picture_size)
    for view in views(name, picture):
        seen = view.boxes_in_input(picture.boxes)
        back = view.boxes_in_picture(seen)
        # The corners of the image in the input are the border of the visible part.
        border = view.boxes_in_picture(np.array([[0, 0, *view.image_size[::-1]]], np.float32))[0]
        expected = np.clip(picture.boxes, np.tile(border[:2], 2), np.tile(border[2:], 2))
        assert back.dtype == np.float32
        np.testing.assert_allclose(back, expected, atol=1e-4)
        np.testing.assert_allclose(view.mask_frames(seen), expected, atol=1e-4)


@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_that_end_in_their_last_pixel_come_back_so(mirror):
    spec = dataclasses.replace(SPECS["placed, masks over boxes"], pixel_offset=1.0)
    view = dataclasses.replace(view_rule(spec).whole((90, 121)), mirror=mirror)
    boxes = scene().boxes
    seen = view.boxes_in_input(boxes)
    np.testing.assert_allclose(view.boxes_in_picture(seen), boxes - (0, 0, 1, 1), atol=1e-4)
    # The last pixel of the input is smaller than a pixel of the picture.
    last_pixel = np.array(view.picture_size[::-1]) / view.image_size[::-1]
    np.testing.assert_allclose(view.mask_frames(seen), np.concatenate([boxes[:, :2], boxes[:, 2:] - 1 + last_pixel], 1), atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_pixels_boxes_and_masks_show_the_same(name):
    """The bright part of the input is the union of the masks, and each mask fills its box."""
    picture = scene()
    for view in views(name, picture):
        seen = as_seen(picture, view, SPECS[name])
        assert seen.image.shape == (*view.input_size, 3)
        kept = np.flatnonzero(view.keeps(picture.boxes))
        union = view.masks_over_input(picture.masks, np.arange(3), view.input_size).any(0)
        assert overlap(seen.image[..., 0] > 140, union) > 0.93
        np.testing.assert_array_equal(seen.masks, view.masks_over_input(picture.masks, kept, view.input_size))
        for mask, (x1, y1, x2, y2) in zip(seen.masks, seen.boxes, strict=True):
            x, y, width, height = cv2.boundingRect(mask)
            # A pixel of the picture can cover several pixels of the input.
            np.testing.assert_allclose((x, y, x + width, y + height), (x1, y1, x2, y2), atol=8)


@pytest.mark.parametrize("name", SPECS)
def test_the_evaluation_image_is_the_training_image_before_rounding(name):
    picture = scene()
    for view in views(name, picture):
        exact = view.evaluation_image(picture.image)
        assert (exact.dtype, exact.shape) == (np.float32, (*view.input_size, 3))
        np.testing.assert_allclose(view.training_image(picture.image), exact, atol=0.501)
        assert not exact[view.image_size[0] :].any()
        assert not exact[:, view.image_size[1] :].any()


# ---- Targets ----


@pytest.mark.parametrize("picture_size", PICTURE_SIZES)
@pytest.mark.parametrize("name", SPECS)
def test_targets_lie_where_the_network_sees_the_objects(name, picture_size):
    """The cells of masks and of semantic masks, drawn into the input, lie on the objects."""
    picture, spec = scene(picture_size), SPECS[name]
    for view in views(name, picture):
        targets = to_targets(picture, view, spec, 5)
        kept = np.flatnonzero(view.keeps(picture.boxes))
        assert targets.valid.sum() == len(kept)
        mask_size, semantic_size = spec.mask_size_in(view.input_size), spec.semantic_size_in(view.input_size)
        full = view.masks_over_input(picture.masks, kept, view.input_size)
        frame = np.array([0, 0, *view.input_size[::-1]])
        for row, mask in enumerate(full):
            cells = bits(targets.masks[row], mask_size)
            box = frame if spec.mask_frame == "image" else targets.boxes[row]
            x1, y1, x2, y2 = targets.boxes[row]
            # The cells are larger than an object of which only a thin slice is visible.
            if min(x2 - x1, y2 - y1) > 24:
                assert overlap(spread(cells, box, view.input_size), mask) > 0.85
        semantic = bits(targets.semantic, semantic_size)
        ordinary = full[~picture.crowd[kept]]
        assert not semantic[:2].any()
        if ordinary.sum() > 1500:
            assert overlap(spread(semantic[2], frame, view.input_size), ordinary.any(0)) > 0.8


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("picture_size", "input_size"), [((90, 121), (128, 192)), ((121, 90), (192, 128)), ((60, 200), (128, 192))])
def test_letterboxed_masks_are_those_of_the_literal_input(picture_size, input_size, mirror):
    """They equal OpenCV's resize, padding with zeros and torch's interpolation bit for bit."""
    picture = scene(picture_size)
    view = dataclasses.replace(view_rule(LETTERBOXED).whole(picture_size), mirror=mirror)
    assert view.input_size == input_size
    height, width = view.image_size
    literal = np.zeros((3, *input_size), np.uint8)
    for mask, large in zip(picture.masks, literal, strict=True):
        seen = np.ascontiguousarray(mask[:, ::-1]) if mirror else mask
        large[:height, :width] = cv2.resize(seen, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(view.masks_over_input(picture.masks, np.arange(3), input_size), literal)

    targets = to_targets(picture, view, LETTERBOXED, 4)
    mask_size = tuple(side // 4 for side in input_size)
    semantic_size = tuple(side // 8 for side in input_size)
    np.testing.assert_array_equal(bits(targets.masks[:3], mask_size), resize_binary_masks(literal, mask_size))
    # The crowd is not in the semantic mask, because no loss learns from it.
    expected = resize_binary_masks(literal[[0, 2]], semantic_size).any(0)
    np.testing.assert_array_equal(bits(targets.semantic, semantic_size), [np.zeros_like(expected)] * 2 + [expected])


def test_cells_that_mix_the_picture_with_its_padding():
    """For a mask over the whole picture, cells are set where the picture has more than half."""
    white = Sample(
        image=np.full((66, 192, 3), 255, np.uint8),
        boxes=np.array([[0, 0, 192, 66]], np.float32),
        classes=np.zeros(1, np.int32),
        crowd=np.zeros(1, bool),
        masks=np.ones((1, 66, 192), np.uint8),
        index=0,
    )
    view = view_rule(LETTERBOXED).whole((66, 192))
    assert view.image_size == (66, 192)
    # Row 16 of the cells depends equally on row 65, in the picture, and on row 66, in the padding.
    cells = bits(to_targets(white, view, LETTERBOXED, 1).masks[0], (32, 48))
    assert cells[:16].all()
    assert not cells[16:].any()


def test_masks_over_the_input_follow_its_size():
    assert [LETTERBOXED.mask_size_in(size) for size in INPUT_SIZES] == [(32, 48), (48, 32)]
    assert [LETTERBOXED.semantic_size_in(size) for size in INPUT_SIZES] == [(16, 24), (24, 16)]
    over_boxes = SPECS["placed, masks over boxes"]
    assert [over_boxes.mask_size_in(size) for size in INPUT_SIZES] == [(56, 56)] * 2
    empty = no_targets(LETTERBOXED, 4, (192, 128))
    assert (empty.masks.shape, empty.semantic.shape) == ((4, 48, 4), (3, 24, 2))


@pytest.mark.parametrize("size", ["mask_size", "semantic_size"])
def test_cells_must_be_whole_in_every_input(size):
    message = rf"{size} = \(28, 28\) in an input of \(128, 192\) would be \(42.0, 18.66\d+\) in one of \(192, 128\)"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LETTERBOXED, **{size: (28, 28)})


def test_a_stretched_picture_has_one_input_and_continuous_boxes():
    with pytest.raises(ValueError, match="fill one size of input"):
        view_rule(InputSpec(INPUT_SIZES, None, None, 3))
    with pytest.raises(ValueError, match="continuous boxes"):
        view_rule(dataclasses.replace(STRETCHED, pixel_offset=1.0))


def test_batches_of_a_letterboxed_detector():
    """There are training and evaluation batches of landscapes and portraits, with padding rows."""
    loader = TrainingLoader(FakeDataset(), LETTERBOXED, MIRROR_ONLY, 3)
    shapes = {}
    for input_size, images in loader.groups.by_input_size():
        arrays = loader(np.array([(images[0], 1), (images[-1], 2)]))["arrays"]
        shapes[input_size] = (arrays["images"].shape, arrays["targets"]["masks"].shape, arrays["targets"]["semantic"].shape)
    assert shapes == {
        (128, 192): ((2, 128, 192, 3), (2, 3, 32, 6), (2, 3, 16, 3)),
        (192, 128): ((2, 192, 128, 3), (2, 3, 48, 4), (2, 3, 24, 2)),
    }
    for batch in evaluation_batches(FakeDataset(), LETTERBOXED, batch_size=8, max_objects=3):
        height, width = batch.images.shape[1:3]
        assert batch.targets.masks.shape == (8, 3, height // 4, width // 32)
        assert batch.targets.semantic.shape == (8, 3, height // 8, width // 64)
        assert batch.targets.masks[batch.valid].any()
        assert not batch.targets.masks[~batch.valid].any()


# ---- Detections ----


@pytest.mark.parametrize("picture_size", PICTURE_SIZES)
@pytest.mark.parametrize(("name", "frame"), [*((name, None) for name in SPECS), ("placed, masks over boxes", "integer_box")])
def test_targets_that_are_detected_are_the_picture_s_objects(name, frame, picture_size):
    """If a detector predicts its targets exactly, its results are the annotated boxes and masks."""
    picture, spec = scene(picture_size), SPECS[name]
    spec = dataclasses.replace(spec, mask_frame=frame or spec.mask_frame)
    view = view_rule(spec).whole(picture_size)
    targets = to_targets(picture, view, spec, 3)
    soft = bits(targets.masks, spec.mask_size_in(view.input_size)).astype(np.float32)
    boxes, masks = to_picture(Selected(targets.boxes, np.ones(3, np.float32), targets.classes, soft), view, spec)
    np.testing.assert_allclose(boxes, picture.boxes, atol=1e-4)
    assert masks.shape == (3, *picture_size)
    for mask, truth in zip(masks, picture.masks > 0, strict=True):
        assert overlap(mask, truth) > 0.9


@pytest.mark.parametrize("picture_size", PICTURE_SIZES)
def test_letterboxed_masks_go_back_to_the_picture(picture_size):
    """By definition, they are bilinear between the cells around each pixel's centre."""
    view = view_rule(LETTERBOXED).whole(picture_size)
    size = LETTERBOXED.mask_size_in(view.input_size)
    soft = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    nothing = np.zeros((2, 4), np.float32)
    _, masks = to_picture(Selected(nothing, np.ones(2, np.float32), np.zeros(2, np.int32), soft), view, LETTERBOXED)

    weights = []
    for picture_length, image_length, input_length, cells in zip(picture_size, view.image_size, view.input_size, size, strict=True):
        centres = (np.arange(picture_length) + 0.5) * image_length / picture_length * cells / input_length - 0.5
        weights.append(np.maximum(1 - np.abs(np.clip(centres, 0, cells - 1)[:, None] - np.arange(cells)), 0))
    expected = np.einsum("Hh,dhw,Ww->dHW", weights[0], soft.astype(np.float64), weights[1])
    decided = np.abs(expected - 0.5) > 1e-5
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(masks[decided], expected[decided] > 0.5)
