"""Drawings: positions, colours, and labels that are legible in small and large pictures."""

import numpy as np
import pytest

from jaxseg.visualization import MASK_ALPHA, PALETTE, color_of, draw

NAMES = ("cat", "dog")


def grey(height, width):
    return np.full((height, width, 3), 100, np.uint8)


def mixed(color, below=100):
    return np.rint(below * (1 - MASK_ALPHA) + np.array(color) * MASK_ALPHA)


def test_colours_step_through_the_whole_palette():
    assert len({color_of(i) for i in range(19)}) == len(PALETTE) == 19
    assert color_of(1) == PALETTE[5]
    assert color_of(19) == color_of(0)


def test_a_mask_is_mixed_into_its_pixels_alone():
    mask = np.zeros((1, 600, 700), bool)
    mask[0, 300:400, 200:500] = True
    image = grey(600, 700)
    drawn = draw(image, np.array([[200, 300, 500, 400]]), np.array([1]), NAMES, masks=mask, scores=np.array([0.5]))
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape
    np.testing.assert_allclose(drawn[350, 350], mixed(color_of(0)), atol=1)
    np.testing.assert_array_equal(drawn[500:], 100)
    np.testing.assert_array_equal(image, 100, "the caller's picture was changed")


def test_the_best_detection_lies_on_top():
    masks = np.ones((2, 600, 700), bool)
    boxes = np.array([[0, 0, 700, 600], [50, 50, 650, 550]])
    drawn = draw(grey(600, 700), boxes, np.array([0, 0]), NAMES, masks=masks, scores=np.array([0.9, 0.5]))
    below = mixed(color_of(1))
    np.testing.assert_allclose(drawn[300, 300], below * (1 - MASK_ALPHA) + np.array(color_of(0)) * MASK_ALPHA, atol=2)
    same_place = np.array([[100, 100, 600, 500]] * 2)
    edge = draw(grey(600, 700), same_place, np.array([0, 0]), NAMES)[500, 300]
    np.testing.assert_array_equal(edge, color_of(0))


def test_the_colour_is_of_the_rank():
    boxes = np.array([[100, 100, 600, 500], [120, 120, 580, 480]])
    drawn = draw(grey(600, 700), boxes, np.array([1, 0]), NAMES)
    np.testing.assert_array_equal(drawn[480, 300], color_of(1))


def test_a_box_is_an_outline_with_a_label_above():
    drawn = draw(grey(600, 700), np.array([[100.4, 200.4, 400, 500]]), np.array([0]), NAMES, scores=np.array([0.25]))
    np.testing.assert_array_equal(drawn[350, 101], color_of(0))
    np.testing.assert_array_equal(drawn[350, 250], 100)
    plate = (drawn[180:199, 100:200] == color_of(0)).all(-1)
    assert plate.mean() > 0.15
    assert (drawn[180:199, 100:200] == 255).all(-1).any(), "the label has no text"
    without = draw(grey(600, 700), np.array([[100.4, 200.4, 400, 500]]), np.array([0]), NAMES)
    assert plate.sum() > (without[180:199, 100:200] == color_of(0)).all(-1).sum(), "a score must make the label longer"


def test_labels_stay_inside_the_picture():
    """The whole label is visible for boxes at each edge and outside of it."""
    for box in ([0, 0, 50, 50], [690, 0, 700, 600], [650, 590, 740, 640], [-500, -500, -300, -300], [1e9, 5, 2e9, 9]):
        drawn = draw(grey(600, 700), np.array([box]), np.array([0]), NAMES, scores=np.array([0.5]))
        assert (drawn == color_of(0)).all(-1).sum() > 300, box


def test_small_pictures_are_enlarged_and_lines_grow_with_large_ones():
    mask = np.zeros((1, 100, 128), bool)
    mask[0, 50:60, 40:90] = True
    small = draw(grey(100, 128), np.array([[40, 50, 90, 60]]), np.array([0]), NAMES, masks=mask, scores=np.array([0.5]))
    assert small.shape == (400, 512, 3)
    np.testing.assert_allclose(small[220, 260], mixed(color_of(0)), atol=1)
    np.testing.assert_array_equal(small[350], 100)

    def line_width(side):
        drawn = draw(grey(side, side), np.array([[side // 4, side // 4, side // 2, side // 2]]), np.array([0]), NAMES)
        return (drawn[3 * side // 8, : 3 * side // 8] == color_of(0)).all(-1).sum()

    assert line_width(4000) > 3 * line_width(600) > 0


def test_nothing_to_draw_leaves_the_picture():
    boxes, masks, classes, scores = np.zeros((0, 4)), np.zeros((0, 600, 700), bool), np.zeros(0, int), np.zeros(0)
    np.testing.assert_array_equal(draw(grey(600, 700), boxes, classes, NAMES, masks=masks, scores=scores), 100)
    boxes, masks, classes, scores = np.zeros((1, 4)), np.zeros((1, 600, 700), bool), np.zeros(1, int), np.zeros(1)
    np.testing.assert_array_equal(draw(grey(600, 700), boxes, classes, NAMES, masks=masks, scores=scores)[300:], 100)


def test_unusable_input_is_refused():
    with pytest.raises(ValueError, match=r"float64 \[5, 5, 3\]; it must be uint8"):
        draw(np.zeros((5, 5, 3)), np.zeros((0, 4)), np.zeros(0), NAMES)
    with pytest.raises(ValueError, match="differ in number"):
        draw(grey(5, 5), np.zeros((2, 4)), np.zeros(1), NAMES)
