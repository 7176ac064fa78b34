"""Sizes and pixels of the network's input, as the four originals make them, and which of several shapes a picture gets."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxseg.data.views.resize import batch_shape, fit_picture, fitted_size, network_size, resize_pixels
from jaxseg.data.views.transforms import warp_image
from jaxseg.data.views.window import Window
from jaxseg.structures import InputSpec, Resize

RULES = {"mrb": "pillow_truncated", "d2": "pillow", "mmdet": "opencv", "tv": "float"}
SHAPES = ((800, 1344), (1344, 800))
# What the originals gave: sizes for pictures of height and width `hw`; RGB pixels, rows 7, 27, ... of 200.
GOLDEN = dict(np.load(Path(__file__).parent / "data" / "two_stage" / "input.npz"))


def spec(rule="opencv", shapes=SHAPES, shorter_sides=(800,), longer_side=1333) -> InputSpec:
    return InputSpec(shapes, (112, 112), None, 80, Resize(rule, shorter_sides, longer_side), "box")


@pytest.mark.parametrize("original", RULES)
def test_sizes_are_the_originals(original):
    resize = Resize(RULES[original], (800,), 1333)
    ours = [network_size((int(h), int(w)), resize, 800) for h, w in GOLDEN["hw"]]
    np.testing.assert_array_equal(ours, GOLDEN[original])


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        # 1066.67: maskrcnn-benchmark and torchvision cut, the others round.
        ("pillow_truncated", (480, 640), (800, 1066)),
        ("float", (480, 640), (800, 1066)),
        ("pillow", (480, 640), (800, 1067)),
        ("opencv", (480, 640), (800, 1067)),
        # The longer side decides: 599.85, and 600 / 500 * 1111 = 1333.2.
        ("pillow_truncated", (1111, 500), (1333, 600)),
        ("float", (1111, 500), (1333, 599)),
        ("pillow", (1111, 500), (1333, 600)),
        ("opencv", (1111, 500), (1333, 600)),
        # A stripe does not vanish; maskrcnn-benchmark's longer side follows the rounded shorter one.
        ("opencv", (1, 4000), (1, 1333)),
        ("float", (1, 4000), (1, 1333)),
        ("pillow_truncated", (10, 900), (15, 1350)),
    ],
)
def test_rounding(rule, size, expected):
    assert network_size(size, Resize(rule, (800,), 1333), 800) == expected


def test_stretching_has_no_size_of_its_own():
    with pytest.raises(ValueError, match="stretch takes the size of the network's input"):
        network_size((10, 10), Resize(), 800)


@pytest.mark.parametrize("original", ["mrb", "d2", "mmdet"])
def test_pixels_are_the_originals(original):
    pixels = resize_pixels(GOLDEN["px_in"], (200, 278), RULES[original])
    np.testing.assert_array_equal(pixels[7::20], GOLDEN[f"px_{original}"])


def test_pixels_in_floating_point_are_torchvisions():
    """torchvision normalises before it resizes; with weights that sum to 1 the order makes no difference."""
    pixels = resize_pixels(GOLDEN["px_in"], (200, 278), "float")
    np.testing.assert_allclose(pixels[7::20] / 255, GOLDEN["px_tv"], atol=1e-5)


def test_shrinking_averages_only_with_pillow():
    """Stripes of one pixel, 4 times smaller: Pillow's grey, OpenCV's samples of two neighbours, without antialias."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::4] = 255
    assert np.ptp(resize_pixels(image, (16, 16), "pillow")[2:-2, 2:-2].astype(int)) <= 1
    np.testing.assert_array_equal(resize_pixels(image, (16, 16), "opencv"), 0)
    np.testing.assert_array_equal(resize_pixels(image, (16, 16), "float"), 0)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((480, 640), (800, 1344)), ((640, 480), (1344, 800)), ((500, 500), (1344, 800)), ((427, 640), (800, 1344)), ((300, 900), (800, 1344))],
)
def test_landscapes_and_portraits_have_shapes_of_their_own(size, shape):
    assert batch_shape(size, spec()) == shape


def test_the_smallest_shape_that_holds_the_largest_side_is_taken():
    shapes = ((800, 1344), (800, 1088), (1344, 800), (1344, 1344))
    several = spec(shapes=shapes, shorter_sides=(640, 800))
    assert batch_shape((480, 640), several) == (800, 1088)
    assert batch_shape((427, 640), several) == (800, 1344)
    # At 640 it would fit into less, but its batch does not depend on what is drawn.
    assert fitted_size((427, 640), several, 640) == (640, 959)


def test_every_picture_fits_the_standard_shapes_at_every_side():
    for rule, height, width, side in itertools.product(RULES.values(), (1, 33, 480, 799, 2000), (1, 35, 640, 801, 5000), (640, 800)):
        one = spec(rule, shorter_sides=(640, 800))
        size, shape = fitted_size((height, width), one, side), batch_shape((height, width), one)
        assert 1 <= size[0] <= shape[0]
        assert 1 <= size[1] <= shape[1]


def test_a_picture_that_no_shape_holds_is_made_as_large_as_one_lets_it_be():
    small = spec(shapes=((256, 320), (320, 256)))
    assert (batch_shape((480, 640), small), fitted_size((480, 640), small)) == ((256, 320), (240, 320))
    assert (batch_shape((2000, 1000), small), fitted_size((2000, 1000), small)) == ((320, 256), (320, 160))
    assert fit_picture(np.full((480, 640, 3), 7, np.uint8), small).image.shape == (256, 320, 3)


@pytest.mark.parametrize("rule", RULES.values())
def test_the_picture_lies_in_the_upper_left_corner_of_zeros(rule):
    image = np.random.default_rng(0).integers(1, 256, (30, 40, 3), dtype=np.uint8)
    fitted = fit_picture(image, spec(rule, ((64, 96), (96, 64)), (48, 60), 90))
    assert (fitted.image.shape, fitted.image.dtype, fitted.size) == ((64, 96, 3), np.float32, (60, 80))
    np.testing.assert_array_equal(fitted.image[:60, :80], resize_pixels(image, (60, 80), rule))
    assert not fitted.image[60:].any()
    assert not fitted.image[:, 80:].any()
    assert fit_picture(image, spec(rule, ((64, 96), (96, 64)), (48, 60), 90), shorter_side=48).size == (48, 64)


def test_stretching_fills_the_input():
    """As YOLACT's training shows a whole picture."""
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    fitted = fit_picture(image, InputSpec(((64, 64),), (16, 16), (8, 8), 3))
    assert fitted.size == (64, 64)
    np.testing.assert_array_equal(fitted.image, warp_image(image, Window.whole((37, 53)), (64, 64)))
