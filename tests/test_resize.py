"""The sizes and pixels of resized pictures, as in the originals, and the choice of the input."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxseg.config import MIRROR_ONLY
from jaxseg.data.views.placed import PlacedRule
from jaxseg.data.views.resize import proportional_size, resize_pixels
from jaxseg.structures import InputSpec, Resize

RULES = {"mrb": "pillow_truncated", "d2": "pillow", "mmdet": "opencv", "tv": "float"}
INPUT_SIZES = ((800, 1344), (1344, 800))
# The originals' sizes for pictures of height and width `hw`, and RGB pixels of rows 7, 27, ... of
# 200.
GOLDEN = dict(np.load(Path(__file__).parent / "data" / "two_stage" / "input.npz"))


def rule_of(resize="opencv", input_sizes=INPUT_SIZES, shorter_sides=(800,), longer_side=1333) -> PlacedRule:
    return PlacedRule(InputSpec(input_sizes, (112, 112), None, 80, Resize(resize, shorter_sides, longer_side), "box"))


@pytest.mark.parametrize("original", RULES)
def test_sizes_are_the_originals(original):
    resize = Resize(RULES[original], (800,), 1333)
    ours = [proportional_size((int(h), int(w)), resize, 800) for h, w in GOLDEN["hw"]]
    np.testing.assert_array_equal(ours, GOLDEN[original])


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        # The exact width is 1066.67; maskrcnn-benchmark and torchvision truncate, the others round.
        ("pillow_truncated", (480, 640), (800, 1066)),
        ("float", (480, 640), (800, 1066)),
        ("pillow", (480, 640), (800, 1067)),
        ("opencv", (480, 640), (800, 1067)),
        # The longer side limits the size: 599.85, and 600 / 500 * 1111 = 1333.2.
        ("pillow_truncated", (1111, 500), (1333, 600)),
        ("float", (1111, 500), (1333, 599)),
        ("pillow", (1111, 500), (1333, 600)),
        ("opencv", (1111, 500), (1333, 600)),
        # A stripe keeps one pixel. maskrcnn-benchmark rounds the shorter side first.
        ("opencv", (1, 4000), (1, 1333)),
        ("float", (1, 4000), (1, 1333)),
        ("pillow_truncated", (10, 900), (15, 1350)),
    ],
)
def test_rounding(rule, size, expected):
    assert proportional_size(size, Resize(rule, (800,), 1333), 800) == expected


@pytest.mark.parametrize("original", ["mrb", "d2", "mmdet"])
def test_pixels_are_the_originals(original):
    pixels = resize_pixels(GOLDEN["px_in"], (200, 278), RULES[original])
    np.testing.assert_array_equal(pixels[7::20], GOLDEN[f"px_{original}"])


def test_pixels_in_floating_point_are_torchvisions():
    """torchvision normalises before it resizes, which does not change the result."""
    pixels = resize_pixels(GOLDEN["px_in"], (200, 278), "float")
    np.testing.assert_allclose(pixels[7::20] / 255, GOLDEN["px_tv"], atol=1e-5)


def test_shrinking_averages_only_with_pillow():
    """Pillow turns stripes of one pixel into grey, while OpenCV reads two neighbouring pixels."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::4] = 255
    assert np.ptp(resize_pixels(image, (16, 16), "pillow")[2:-2, 2:-2].astype(int)) <= 1
    np.testing.assert_array_equal(resize_pixels(image, (16, 16), "opencv"), 0)
    np.testing.assert_array_equal(resize_pixels(image, (16, 16), "float"), 0)


@pytest.mark.parametrize(
    ("size", "input_size"),
    [((480, 640), (800, 1344)), ((640, 480), (1344, 800)), ((500, 500), (1344, 800)), ((427, 640), (800, 1344)), ((300, 900), (800, 1344))],
)
def test_landscapes_and_portraits_have_inputs_of_their_own(size, input_size):
    assert rule_of().input_size(size) == input_size


def drawn_sizes(rule: PlacedRule, picture_size: tuple[int, int]) -> tuple[set, set]:
    """Returns the input sizes, and the sizes of the picture within them, of twenty draws."""
    nothing = {"boxes": np.zeros((0, 4), np.float32), "crowd": np.zeros(0, bool)}
    views = [rule.draw(np.random.default_rng(seed), picture_size, **nothing, augment=MIRROR_ONLY) for seed in range(20)]
    return {view.input_size for view in views}, {view.image_size for view in views}


def test_the_smallest_input_that_holds_the_largest_side_is_taken():
    several = rule_of(input_sizes=((800, 1344), (800, 1088), (1344, 800), (1344, 1344)), shorter_sides=(640, 800))
    assert several.input_size((480, 640)) == (800, 1088)
    # At 640 a smaller input would suffice, but the picture's batch must not depend on the draw.
    assert drawn_sizes(several, (427, 640)) == ({(800, 1344)}, {(640, 959), (800, 1199)})


def test_every_picture_fits_the_standard_inputs_at_every_side():
    for resize, height, width in itertools.product(RULES.values(), (1, 33, 480, 799, 2000), (1, 35, 640, 801, 5000)):
        rule = rule_of(resize, shorter_sides=(640, 800))
        (input_size,), sizes = drawn_sizes(rule, (height, width))
        assert input_size == rule.input_size((height, width))
        for size in sizes:
            assert 1 <= size[0] <= input_size[0]
            assert 1 <= size[1] <= input_size[1]


def test_a_picture_that_no_input_holds_is_made_as_large_as_one_lets_it_be():
    small = rule_of(input_sizes=((256, 320), (320, 256)))
    wide, tall = small.whole((480, 640)), small.whole((2000, 1000))
    assert (wide.input_size, wide.image_size) == ((256, 320), (240, 320))
    assert (tall.input_size, tall.image_size) == ((320, 256), (320, 160))
    assert wide.evaluation_image(np.full((480, 640, 3), 7, np.uint8)).shape == (256, 320, 3)


@pytest.mark.parametrize("rule", RULES.values())
def test_the_picture_lies_in_the_upper_left_corner_of_zeros(rule):
    image = np.random.default_rng(0).integers(1, 256, (30, 40, 3), dtype=np.uint8)
    view = rule_of(rule, ((64, 96), (96, 64)), (48, 60), 90).whole((30, 40))
    placed = view.evaluation_image(image)
    assert (placed.shape, placed.dtype, view.image_size) == ((64, 96, 3), np.float32, (60, 80))
    np.testing.assert_array_equal(placed[:60, :80], resize_pixels(image, (60, 80), rule))
    assert not placed[60:].any()
    assert not placed[:, 80:].any()
