"""Stretched pictures: the original's numbers, a simple reference, and general properties."""

import functools

import cv2
import jax
import numpy as np
import pytest
from binary_masks import resize_binary_masks
from goldens import functions, input_picture, load_arrays

from jaxseg.config import AugmentConfig
from jaxseg.data.inspection import as_seen
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.stream.targets import to_targets
from jaxseg.data.views.interpolation import opencv_taps
from jaxseg.data.views.photometric import Photometric, apply_photometric, draw_photometric, to_uint8
from jaxseg.data.views.stretched import StretchedRule, StretchedView, draw_crop, draw_expansion
from jaxseg.data.views.window import FILL, Window
from jaxseg.structures import InputSpec

GOLDEN = functions("augment")
STD = np.array((58.40, 57.12, 57.38))
SIZE = (550, 550)
NEUTRAL, ALL_STEPS = Photometric(), AugmentConfig()
SPEC = InputSpec(input_sizes=(SIZE,), mask_size=(138, 138), semantic_size=(69, 69), num_classes=80)


def golden_sample() -> Sample:
    """Returns the picture of the original's recorded steps; its last object is a crowd."""
    height, width = GOLDEN["image_bgr"].shape[:2]
    return Sample(
        image=np.ascontiguousarray(GOLDEN["image_bgr"][..., ::-1]),
        boxes=(GOLDEN["boxes"] * (width, height, width, height)).astype(np.float32),
        classes=GOLDEN["labels"].astype(np.int32),
        crowd=GOLDEN["labels"] < 0,
        masks=GOLDEN["masks"],
        index=0,
    )


def view_of(sample: Sample, window: Window, size: tuple[int, int], photometric: Photometric = NEUTRAL) -> StretchedView:
    return StretchedView(sample.picture_size, size, window, photometric)


def rule_of(size: tuple[int, int], mask_size=None, semantic_size=None) -> StretchedRule:
    return StretchedRule(InputSpec((size,), mask_size, semantic_size, 80))


def drawn(sample: Sample, seed: int, rule: StretchedRule, augment: AugmentConfig = ALL_STEPS) -> StretchedView:
    return rule.draw(np.random.default_rng(seed), sample.picture_size, boxes=sample.boxes, crowd=sample.crowd, augment=augment)


class OriginalDraws:
    """Makes the original's draws for a seed in its order, and converts them to our settings."""

    def __init__(self, seed: int, sample: Sample):
        self.random = np.random.RandomState(seed)
        self.sample = sample

    def photometric(self) -> Photometric:
        brightness = self._maybe(-32, 32, 0.0)
        contrast_first = self.random.randint(2)
        contrast = self._maybe(0.5, 1.5, 1.0) if contrast_first else 1.0
        saturation = self._maybe(0.5, 1.5, 1.0)
        hue = self._maybe(-18, 18, 0.0)
        return Photometric(brightness, contrast if contrast_first else self._maybe(0.5, 1.5, 1.0), saturation, hue)

    def expansion(self, window: Window) -> Window:
        if self.random.randint(2):
            return window
        ratio = self.random.uniform(1, 4)
        left = self.random.uniform(0, window.width * ratio - window.width)
        return window.expanded(ratio, left, self.random.uniform(0, window.height * ratio - window.height))

    def crop(self, window: Window) -> Window:
        boxes = self.sample.boxes[~self.sample.crowd]
        while self.random.randint(6):
            for _ in range(50):
                width = self.random.uniform(0.3 * window.width, window.width)
                height = self.random.uniform(0.3 * window.height, window.height)
                if height / width < 0.5 or height / width > 2:
                    continue
                left = self.random.uniform(window.width - width)
                cropped = window.cropped(left, self.random.uniform(window.height - height), width, height)
                if cropped.holds((boxes[:, :2].astype(float) + boxes[:, 2:]) / 2).any():
                    return cropped
        return window

    def mirror(self, window: Window) -> Window:
        return window.mirrored() if self.random.randint(2) else window

    def _maybe(self, low: float, high: float, otherwise: float) -> float:
        return self.random.uniform(low, high) if self.random.randint(2) else otherwise


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("step", ["expand", "crop", "mirror"])
def test_each_step_moves_boxes_and_pixels_as_the_original(step, case):
    sample = golden_sample()
    draws = OriginalDraws(100 + case, sample)
    whole = Window.whole(sample.image.shape[:2])
    window = {"expand": draws.expansion, "crop": draws.crop, "mirror": draws.mirror}[step](whole)
    golden = {name: GOLDEN[f"{step}{case}/{name}"] for name in ("shape", "boxes", "labels", "image_sum", "mask_area")}

    size = (window.height, window.width)
    assert (*size, 3) == tuple(golden["shape"])
    view = view_of(sample, window, size)
    kept = np.flatnonzero(view.keeps(sample.boxes))
    np.testing.assert_array_equal(sample.classes[kept], golden["labels"])
    np.testing.assert_allclose(view.boxes_in_input(sample.boxes[kept]), golden["boxes"], atol=1e-4)
    np.testing.assert_array_equal(view.masks_over_input(sample.masks, kept, size).sum((1, 2)), golden["mask_area"])
    image = view.evaluation_image(sample.image).astype(np.float64)
    np.testing.assert_allclose([image.sum(), (image**2).sum(), image.min(), image.max()], golden["image_sum"][[0, 2, 3, 4]], rtol=1e-6)


@pytest.mark.parametrize("case", range(6))
def test_colours_are_the_originals(case):
    """RGB gives the same as the original's BGR, with contrast before or after HSV."""
    sample = golden_sample()
    image = apply_photometric(sample.image, OriginalDraws(100 + case, sample).photometric())
    np.testing.assert_allclose(image[::6, ::6, ::-1], GOLDEN[f"photometric{case}/image_stride6"], atol=1e-3)
    np.testing.assert_allclose(image.sum(dtype=np.float64), GOLDEN[f"photometric{case}/image_sum"][0], rtol=1e-6)


@pytest.mark.parametrize("case", range(12))
def test_the_whole_augmentation_is_the_originals(case):
    """Objects and mask bits are equal, boxes within 1e-6, and pixels within float32 rounding."""
    sample = golden_sample()
    draws = OriginalDraws(case, sample)
    photometric = draws.photometric()
    window = draws.mirror(draws.crop(draws.expansion(Window.whole(sample.image.shape[:2]))))
    golden = {name: GOLDEN[f"full{case}/{name}"] for name in ("boxes", "labels", "image_stride10", "masks_stride10", "mask_area")}

    view = view_of(sample, window, SIZE, photometric)
    kept = np.flatnonzero(view.keeps(sample.boxes))
    np.testing.assert_array_equal(sample.classes[kept], golden["labels"])
    np.testing.assert_allclose(view.boxes_in_input(sample.boxes[kept]) / SIZE[0], golden["boxes"], atol=1e-6)
    masks = view.masks_over_input(sample.masks, kept, SIZE)
    np.testing.assert_array_equal(masks[:, ::10, ::10], golden["masks_stride10"])
    np.testing.assert_array_equal(masks.sum((1, 2)), golden["mask_area"])
    image = view.evaluation_image(sample.image)
    np.testing.assert_allclose(((image - FILL) / STD)[::10, ::10], golden["image_stride10"], atol=1e-3)


def test_only_boxes_without_area_are_dropped():
    """This is the rule of the original's training.

    Its evaluation drops boxes under 4 / 550 of the image's side, but ours does not.
    """
    boxes = (GOLDEN["discard_boxes"] * 550).astype(np.float32)
    whole = StretchedRule(SPEC).whole(SIZE)
    np.testing.assert_array_equal(np.flatnonzero(whole.keeps(boxes)), GOLDEN["discard_train_kept"])
    nothing = np.array([[10, 10, 10, 50], [10, 10, 30, 10]], np.float32)
    assert not whole.keeps(nothing).any()


@pytest.mark.parametrize("name", ["yolact_base", "yolact_im400"])
def test_evaluation_images_are_the_originals(golden, name):
    arrays, key = load_arrays(golden / "yolact" / "functions" / "transforms.npz"), f"{name}_config/base_stride4"
    size, pixels = 400 if "400" in name else 550, input_picture("transforms")
    image = rule_of((size, size)).whole(pixels.shape[:2]).evaluation_image(pixels)
    normalised = ((image - FILL) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(arrays.kept(normalised[None, :, ::4, ::4], key), arrays[key], atol=2e-5)


def test_photometric_changes_have_their_meaning():
    """The results for three pixels are known: pure red, grey, and a dark green."""
    pixels = np.array([[[200, 0, 0], [90, 90, 90], [20, 60, 40]]], np.uint8)

    def change(**kind: float) -> list[list[float]]:
        return apply_photometric(pixels, Photometric(**kind))[0].round(3).tolist()

    assert change() == pixels[0].tolist()
    assert change(brightness=-30.0, contrast=2.0)[0] == [340.0, -60.0, -60.0]
    assert change(saturation=0.5) == [[200, 100, 100], [90, 90, 90], [40, 60, 50]]
    assert change(hue=-18.0)[0] == pytest.approx([200, 0, 60], abs=1e-3)
    assert change(hue=18.0)[0] == pytest.approx([200, 60, 0], abs=1e-3)


def test_colours_are_rounded_and_clipped_once_at_the_end():
    values = np.array([[[-7.0, 0.4, 0.5], [1.5, 254.6, 300.0]]], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [[[0, 0, 0], [2, 255, 255]]])


def test_window_steps_cut_to_whole_pixels():
    window = Window.whole((100, 200))
    assert window.expanded(1.503, left=50.9, top=10.2) == Window(-50, -10, 250, 140)
    assert Window(-50, -10, 250, 140).cropped(20.7, 30.2, 100.6, 60.9) == Window(-30, 20, 71, 81)
    assert window.mirrored().mirrored() == window
    assert Window(-30, 20, 71, 181).clipped((100, 200)) == Window(0, 20, 71, 100)


def test_boxes_are_clipped_mirrored_and_scaled():
    boxes = np.array([[10, 20, 60, 40]], np.float32)
    plain, mirrored = (StretchedView((90, 150), (100, 100), Window(20, 10, 120, 60, mirror)) for mirror in (False, True))
    np.testing.assert_allclose(plain.boxes_in_input(boxes), [[0, 20, 40, 60]])
    np.testing.assert_allclose(mirrored.boxes_in_input(boxes), [[60, 20, 100, 60]])


def test_opencv_taps_of_a_doubling():
    lower, upper, weight = opencv_taps(2, 4)
    np.testing.assert_array_equal(lower, [0, 0, 0, 1])
    np.testing.assert_array_equal(upper, [0, 1, 1, 1])
    np.testing.assert_allclose(weight, [0.75, 0.25, 0.75, 0.25])


def random_sample(rng: np.random.Generator, height: int, width: int, objects: int) -> Sample:
    """Makes noise with ellipses that have holes; one in five is a crowd, but never the first."""
    masks = np.zeros((objects, height, width), np.uint8)
    for mask in masks:
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.ellipse(mask, centre, (int(rng.integers(3, width // 2)), int(rng.integers(3, height // 2))), rng.uniform(0, 180), 0, 360, 1, -1)
        mask[rng.random(mask.shape) < 0.1] = 0
    boxes = np.array([cv2.boundingRect(mask) for mask in masks], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    crowd = rng.random(objects) < 0.2
    crowd[:1] = False
    return Sample(
        image=rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        boxes=boxes,
        classes=rng.integers(0, 80, objects).astype(np.int32),
        crowd=crowd,
        masks=masks,
        index=3,
    )


def literal_window(array: np.ndarray, window: Window, fill: np.ndarray | float) -> np.ndarray:
    """Makes all pixels of a window, including those outside of the picture."""
    height, width = array.shape[:2]
    canvas = np.empty((window.height, window.width, *array.shape[2:]), array.dtype)
    canvas[:] = fill
    inside = window.clipped((height, width))
    if not inside.is_empty:
        canvas[inside.y1 - window.y1 : inside.y2 - window.y1, inside.x1 - window.x1 : inside.x2 - window.x1] = array[
            inside.y1 : inside.y2, inside.x1 : inside.x2
        ]
    return np.ascontiguousarray(canvas[:, ::-1]) if window.mirror else canvas


def opencv_resize(mask: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask to the size of the network's input with OpenCV."""
    return cv2.resize(literal_window(mask, window, 0), size[::-1], interpolation=cv2.INTER_LINEAR)


WINDOWS = [
    Window(0, 0, 97, 61),
    Window(0, 0, 97, 61, mirror=True),
    Window(20, 5, 80, 58),
    Window(13, 17, 50, 37, mirror=True),
    Window(-80, -31, 200, 100),
    Window(-200, -90, 150, 55, mirror=True),
    Window(40, -70, 300, 30),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_equal_the_literal_resize(window):
    """Masks equal those of OpenCV and then torch bit for bit; images agree within rounding."""
    sample = random_sample(np.random.default_rng(0), 61, 97, 6)
    size, small, rows = (110, 90), (28, 23), np.arange(6)
    large = np.stack([opencv_resize(mask, window, size) for mask in sample.masks])
    view = view_of(sample, window, size, Photometric(brightness=9.0, contrast=1.1, saturation=0.7, hue=-11.0))
    np.testing.assert_array_equal(view.masks_over_input(sample.masks, rows, size), large)
    np.testing.assert_array_equal(view.masks_over_input(sample.masks, rows, small), resize_binary_masks(large, small))
    literal = cv2.resize(literal_window(apply_photometric(sample.image, view.photometric), window, FILL), size[::-1])
    np.testing.assert_allclose(view.evaluation_image(sample.image), literal, atol=0.02)


def test_a_window_beside_the_picture_shows_the_mean_colour():
    view = StretchedView((10, 10), (4, 6), Window(20, 0, 30, 10))
    np.testing.assert_array_equal(view.evaluation_image(np.zeros((10, 10, 3), np.uint8)), np.broadcast_to(FILL, (4, 6, 3)))
    assert not view.masks_over_input(np.ones((1, 10, 10), np.uint8), np.array([0]), (4, 6)).any()


@pytest.mark.parametrize(("length", "size"), [(550, 138), (550, 69), (400, 100), (700, 88), (37, 90), (64, 64)])
def test_binary_masks_are_torchs_interpolation(length, size):
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    masks = np.random.default_rng(0).integers(0, 2, (2, length, length)).astype(np.uint8)
    reference = torch.nn.functional.interpolate(torch.tensor(masks)[None].float(), (size, size), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(resize_binary_masks(masks, (size, size)), reference[0].gt(0.5).numpy())


def test_binary_masks_of_a_halving():
    """Each cell is the mean of four pixels, and must exceed one half."""
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1]], np.uint8)
    np.testing.assert_array_equal(resize_binary_masks(mask[None], (2, 2))[0], [[True, False], [False, True]])


def test_targets_agree_with_the_sample_as_the_network_sees_it():
    """Targets from the picture have the same bits as those from the sample in the input."""
    sample = random_sample(np.random.default_rng(1), 120, 160, 7)
    rule = rule_of((128, 128), (32, 32), (16, 16))
    for seed in range(12):
        view = drawn(sample, seed, rule)
        seen = as_seen(sample, view, rule.spec)
        assert seen.image.dtype == np.uint8
        direct = to_targets(sample, view, rule.spec, 8)
        detour = to_targets(seen, rule.whole((128, 128)), rule.spec, 8)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), direct, detour)


def test_targets_hold_what_their_docstring_says():
    """The image of 16 x 16 pixels has an ordinary object and a crowd; masks have its resolution."""
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[0, 2:6, 4:9] = 1
    masks[1, 8:, :] = 1
    sample = Sample(
        image=np.zeros((16, 16, 3), np.uint8),
        boxes=np.array([[4, 2, 9, 6], [0, 8, 16, 16]], np.float32),
        classes=np.array([1, 0], np.int32),
        crowd=np.array([False, True]),
        masks=masks,
        index=0,
    )
    spec = InputSpec(((16, 16),), (16, 16), (16, 16), 3)
    targets = to_targets(sample, StretchedRule(spec).whole((16, 16)), spec, max_objects=4)
    np.testing.assert_array_equal(targets.boxes, [[4, 2, 9, 6], [0, 8, 16, 16], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(targets.classes, [1, 0, 0, 0])
    np.testing.assert_array_equal(targets.valid, [True, True, False, False])
    np.testing.assert_array_equal(targets.crowd, [False, True, False, False])
    np.testing.assert_array_equal(targets.masks[0, 2], [0b00001111, 0b10000000])
    np.testing.assert_array_equal(np.unpackbits(targets.masks, axis=-1)[:2], masks)
    # No loss learns from a crowd, so its class has no semantic mask.
    np.testing.assert_array_equal(np.unpackbits(targets.semantic, axis=-1), [np.zeros((16, 16)), masks[0], np.zeros((16, 16))])


def test_the_largest_ordinary_objects_keep_their_rows():
    sample = random_sample(np.random.default_rng(2), 60, 60, 5)
    sample.boxes = np.array([[0, 0, 50, 50], [5, 5, 15, 15], [5, 5, 45, 45], [5, 5, 20, 20], [5, 5, 25, 25]], np.float32)
    sample.crowd = np.array([True, False, False, False, False])
    sample.classes = np.arange(5, dtype=np.int32)
    rule = rule_of((60, 60), (30, 30), (15, 15))
    few, all_rows = (to_targets(sample, rule.whole((60, 60)), rule.spec, rows) for rows in (3, 9))
    np.testing.assert_array_equal(few.classes, [2, 3, 4])
    np.testing.assert_array_equal(few.semantic, all_rows.semantic)


def test_crops_hold_an_ordinary_object_and_stay_inside():
    boxes = np.array([[10, 10, 40, 50], [100, 60, 190, 95], [0, 0, 200, 100]], np.float32)
    crowd = np.array([False, False, True])
    window = Window(-30, -20, 230, 130)
    rng = np.random.default_rng(0)
    crops = [draw_crop(rng, window, boxes, crowd) for _ in range(300)]
    cropped = [crop for crop in crops if crop != window]
    # One mode in six does not crop, and if no crop is found the mode is drawn again.
    assert 30 < len(crops) - len(cropped) < 80
    for crop in cropped:
        assert crop.x1 >= window.x1
        assert crop.y1 >= window.y1
        assert crop.x2 <= window.x2
        assert crop.y2 <= window.y2
        # Rounding to whole pixels changes the aspect ratio a little.
        assert 0.48 <= crop.height / crop.width <= 2.05
        assert crop.holds(np.array([[25.0, 30.0], [145.0, 77.5]])).any()


def test_images_of_crowds_alone_are_never_cropped_and_empty_ones_are():
    window = Window.whole((100, 200))
    box = np.array([[10, 10, 190, 90]], np.float32)
    rng = np.random.default_rng(0)
    assert all(draw_crop(rng, window, box, np.array([True])) == window for _ in range(20))
    nothing = np.zeros((0, 4), np.float32)
    assert sum(draw_crop(rng, window, nothing, np.zeros(0, bool)) != window for _ in range(60)) > 30


def test_draws_have_the_originals_ranges():
    rng = np.random.default_rng(0)
    draws = [draw_photometric(rng) for _ in range(2000)]
    for name, low, high, neutral in [
        ("brightness", -32, 32, 0),
        ("contrast", 0.5, 1.5, 1),
        ("saturation", 0.5, 1.5, 1),
        ("hue", -18, 18, 0),
    ]:
        values = np.array([getattr(draw, name) for draw in draws])
        changed = values[values != neutral]
        assert abs(len(changed) / len(values) - 0.5) < 0.05
        assert changed.min() >= low
        assert changed.max() <= high
        assert changed.min() < low + 0.02 * (high - low)
        assert changed.max() > high - 0.02 * (high - low)
    whole = Window.whole((100, 200))
    windows = [draw_expansion(rng, whole) for _ in range(2000)]
    widths = np.array([window.width for window in windows if window != whole])
    assert abs(len(widths) / len(windows) - 0.5) < 0.05
    assert widths.min() < 212
    assert 788 < widths.max() <= 800
    assert all(window.x1 <= 0 and window.y1 <= 0 and window.x2 >= 200 and window.y2 >= 100 for window in windows)


def test_an_image_that_would_lose_all_objects_stays_whole():
    """A box without area cannot be kept by any window."""
    boxes = np.array([[10, 10, 10, 40]], np.float32)
    rule = StretchedRule(SPEC)
    view = rule.draw(np.random.default_rng(0), (50, 60), boxes=boxes, crowd=np.array([False]), augment=ALL_STEPS)
    assert view.window == Window.whole((50, 60))


def test_steps_that_are_switched_off_do_nothing():
    sample = random_sample(np.random.default_rng(3), 40, 50, 3)
    off = AugmentConfig(photometric=False, expand=False, crop=False, mirror=False)
    rule = rule_of((64, 64))
    view = drawn(sample, 0, rule, off)
    assert view == rule.whole((40, 50))
    image = view.evaluation_image(sample.image)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(view.training_image(sample.image), to_uint8(image))
    assert view.keeps(sample.boxes).all()


def test_the_same_seed_gives_the_same_view_and_numpys_global_state_is_left_alone():
    sample = random_sample(np.random.default_rng(4), 40, 50, 3)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = (drawn(sample, seed, rule_of((64, 64))) for seed in (5, 5, 6))
    assert first == second
    np.testing.assert_array_equal(first.training_image(sample.image), second.training_image(sample.image))
    assert first != other
    assert not np.array_equal(first.training_image(sample.image), other.training_image(sample.image))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
