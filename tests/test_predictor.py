"""`Predictor`: pictures of any size, options, and pictures that cannot be used."""

import json
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tiny_yolact
from pycocotools import mask as coco_mask
from rcnn_originals import load_rcnn
from tiny_pictures import huge_png
from tiny_training import programs_kept_in
from white_boxes import CLASS_NAMES, CONFIG, SIZE, VARIABLES, PaddedDetector, WhiteBoxDetector, picture

from jaxseg import memory
from jaxseg.config import Config, ConfigError, override
from jaxseg.evaluation.masks import crops_in_picture, decode_rle, encode_crops, encode_rle, whole_masks
from jaxseg.models import RcnnConfig, build_model
from jaxseg.pictures import write_picture
from jaxseg.predictor import ImageError, Predictor, as_json

# The edges of the rectangles are at whole cells of the network's input.
PICTURES = [
    (SIZE, SIZE, (4, 8, 20, 24), 255),
    (2 * SIZE, SIZE, (8, 0, 16, 16), 100),
    (3 * SIZE, 2 * SIZE, (0, 30, 64, 96), 255),
    (SIZE // 2, SIZE, (2, 2, 10, 10), 100),
    (SIZE, 4 * SIZE, (8, 8, 128, 16), 255),
]


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """Shares compiled programs between the predictors, most of which have the same ones."""
    with programs_kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture
def detector(use_detector):
    return use_detector(WhiteBoxDetector())


def check(prediction, height, width, box, brightness):
    x1, y1, x2, y2 = box
    assert len(prediction) == 2
    np.testing.assert_allclose(prediction.boxes, [box, [x1, y1, (x1 + x2) / 2, y2]], atol=1e-4)
    assert prediction.boxes.dtype == np.float32
    assert prediction.scores.tolist() == [pytest.approx(0.9), pytest.approx(0.3)]
    assert prediction.classes.tolist() == [int(brightness > 150)] * 2
    assert prediction.names == (CLASS_NAMES[brightness > 150],) * 2
    assert prediction.masks.dtype == bool
    assert prediction.masks.shape == (2, height, width)
    expected = picture(height, width, box, 255)[:, :, 0] > 0
    # Interpolation may round off the corners.
    assert (prediction.masks[0] != expected).sum() <= 12


def test_one_picture_and_a_list_of_all_sizes(detector):
    predictor = Predictor(CONFIG, VARIABLES)
    predictions = predictor([picture(*arguments) for arguments in PICTURES])
    for arguments, prediction in zip(PICTURES, predictions, strict=True):
        check(prediction, *arguments)
        alone = predictor(picture(*arguments))
        np.testing.assert_array_equal(alone.boxes, prediction.boxes)
        np.testing.assert_array_equal(alone.masks, prediction.masks)
    assert predictor([]) == []


def test_few_batch_sizes_are_compiled(detector):
    predictor = Predictor(CONFIG, VARIABLES, batch_size=4)
    for count in range(1, 12):
        assert len(predictor([picture(*PICTURES[i % 5]) for i in range(count)])) == count
    assert detector.traces == 3, "one program for each of the batch sizes 1, 2 and 4"


# The inputs are 32 x 96 and 96 x 32, and the scale is 1, 1/2 or 1/4, so that edges stay at whole
# pixels.
WIDE = [
    (SIZE, 2 * SIZE, (8, 4, 60, 28), 255),
    (4 * SIZE, 12 * SIZE, (64, 16, 300, 100), 100),
    (SIZE, 3 * SIZE, (0, 0, 96, 32), 255),
]
TALL = (4 * SIZE, 2 * SIZE, (4, 8, 60, 120), 100)


@pytest.mark.parametrize("mask_frame", [pytest.param("image", marks=pytest.mark.slow), "box", "integer_box", None])
def test_pictures_in_inputs_of_two_shapes_come_back_in_order(use_detector, mask_frame):
    detector = use_detector(PaddedDetector(mask_frame))
    predictor = Predictor(CONFIG, VARIABLES, batch_size=2)
    # There are a few tall pictures among wide ones, alone and in succession.
    kinds = [TALL if i in (0, 9, 10, 19) else WIDE[i % 3] for i in range(21)]
    asked = []

    def pictures():
        for kind in kinds:
            asked.append(kind)
            yield picture(*kind)

    for i, prediction in enumerate(predictor.stream(pictures())):
        height, width, (x1, y1, x2, y2), brightness = kinds[i]
        assert prediction.classes.tolist() == [int(brightness > 150)] * 2
        np.testing.assert_array_equal(prediction.boxes, [[x1, y1, x2, y2]] * 2)
        assert len(asked) <= i + 1 + 8, "at most two batches of either shape may be read in advance"
        if mask_frame is None:
            assert prediction.masks is None
            continue
        assert prediction.masks.shape == (2, height, width)
        expected = picture(height, width, (x1, y1, x2, y2), 255)[:, :, 0] > 0
        tolerance = 2 * (height + width) if mask_frame == "integer_box" else 16
        assert (prediction.masks[0] != expected).sum() <= tolerance
    assert len(asked) == 21
    assert detector.traces == 4, "one program for batches of 1 and of 2 of either shape"


def test_a_detector_without_masks_gives_boxes_alone(use_detector):
    use_detector(PaddedDetector(None))
    predictor = Predictor(CONFIG, VARIABLES, top_k=1)
    prediction = predictor(picture(*WIDE[0]))
    assert prediction.masks is None
    assert as_json(prediction) == [
        {"box": [8.0, 4.0, 60.0, 28.0], "class": 1, "name": "bright", "score": pytest.approx(0.9)},
    ]
    assert predictor(np.zeros((50, 40, 3), np.uint8)).masks is None


def test_another_rule_of_nms_is_for_yolact_only(use_detector):
    use_detector(PaddedDetector("box"))
    with pytest.raises(ConfigError, match="nms = 'greedy' cannot be chosen"):
        Predictor(Config(model=RcnnConfig()), VARIABLES, nms="greedy")


def test_masks_resized_on_the_device_are_those_of_the_host(detector):
    """The CPU runs the program that GPUs and TPUs use."""
    host, device = Predictor(CONFIG, VARIABLES), Predictor(CONFIG, VARIABLES)
    device._masks_on_device = True
    pictures = [picture(*arguments) for arguments in PICTURES]
    for expected, found in zip(host(pictures), device(pictures), strict=True):
        np.testing.assert_array_equal(found.masks, expected.masks)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
    device = Predictor(CONFIG, VARIABLES, top_k=1)
    device._masks_on_device = True
    assert device(pictures[2]).masks.shape == (1, 3 * SIZE, 2 * SIZE)


def test_pictures_that_do_not_fill_the_input_get_their_masks_on_the_host(use_detector):
    """The resize on the device requires pictures that fill the input."""
    use_detector(PaddedDetector("image"))
    host, device = Predictor(CONFIG, VARIABLES), Predictor(CONFIG, VARIABLES)
    device._masks_on_device = True
    # The second picture has 32 x 48 pixels in its input of 32 x 96.
    for height, width in ((64, 192), (64, 96)):
        image = picture(height, width, (20, 16, 60, 48), 255)
        expected, found = host(image), device(image)
        assert expected.masks.any()
        np.testing.assert_array_equal(found.masks, expected.masks)


def test_options(detector):
    image = picture(*PICTURES[0])
    assert len(Predictor(CONFIG, VARIABLES, score_threshold=0.5)(image)) == 1
    assert len(Predictor(CONFIG, VARIABLES, score_threshold=0.95)(image)) == 0
    assert len(Predictor(CONFIG, VARIABLES, top_k=1)(image)) == 1
    unnamed = override(CONFIG, {"data.class_names": (), "data.category_ids": ()})
    assert Predictor(unnamed, VARIABLES)(image).names == ("class 1", "class 1")


@pytest.mark.parametrize(
    ("options", "key"),
    [({"score_threshold": -0.1}, "score_threshold"), ({"top_k": -1}, "top_k"), ({"batch_size": 3}, "batch_size"), ({"nms": "x"}, "nms")],
)
def test_options_out_of_range_are_refused(detector, options, key):
    with pytest.raises(ConfigError, match=key):
        Predictor(CONFIG, VARIABLES, **options)


def test_nothing_found(detector):
    prediction = Predictor(CONFIG, VARIABLES)(np.zeros((50, 40, 3), np.uint8))
    assert len(prediction) == 0
    assert prediction.boxes.shape == (0, 4)
    assert prediction.masks.shape == (0, 50, 40)
    assert prediction.names == ()
    assert as_json(prediction) == []


def test_grey_and_alpha_are_converted(detector):
    predictor = Predictor(CONFIG, VARIABLES)
    image = picture(*PICTURES[1])
    alpha = np.full((*image.shape[:2], 1), 7, np.uint8)
    for converted in (image[:, :, 0], image[:, :, :1], np.concatenate([image, alpha], 2), jnp.asarray(image)):
        check(predictor(converted), *PICTURES[1])


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((5, 5, 3), np.float32), "dtype float32"),
        (np.zeros((5, 5, 3), np.uint16), "dtype uint16"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \[0, 5, 3\]"),
        (np.zeros((3, 5, 5), np.uint8), r"shape \[3, 5, 5\]"),
        (np.zeros((1, 5, 5, 3), np.uint8), r"shape \[1, 5, 5, 3\]"),
        (3.5, "is a float"),
        (None, "is a NoneType"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused(detector, image, sentence):
    predictor = Predictor(CONFIG, VARIABLES)
    with pytest.raises(ImageError, match=f"The picture .*{sentence}.*; it must be a uint8 array"):
        predictor(image)
    with pytest.raises(ImageError, match=f"Picture 1 .*{sentence}"):
        predictor([picture(*PICTURES[0]), image])
    assert detector.traces == 0, "the error must come before any detection"


def test_a_stream_keeps_two_batches_at_most(detector):
    asked = []

    def pictures():
        for i in range(12):
            asked.append(i)
            yield picture(*PICTURES[0])

    for i, _ in enumerate(Predictor(CONFIG, VARIABLES, batch_size=2).stream(pictures())):
        assert len(asked) <= i + 4
    assert len(asked) == 12


@pytest.mark.parametrize("mask_frame", ["image", "box", "integer_box"])
def test_masks_as_run_lengths_and_as_crops_are_the_full_ones(use_detector, mask_frame):
    use_detector(PaddedDetector(mask_frame))
    pictures = [picture(*arguments) for arguments in (*WIDE, TALL)]
    full, rles, crops = (Predictor(CONFIG, VARIABLES, masks=form)(pictures) for form in ("full", "rle", "crop"))
    for whole, encoded, cropped in zip(full, rles, crops, strict=True):
        assert whole.masks.any()
        assert whole.masks.shape[1:] == whole.picture_size == encoded.picture_size
        np.testing.assert_array_equal(decode_rle(encoded.masks), whole.masks)
        np.testing.assert_array_equal(whole_masks(cropped.masks, whole.picture_size, len(whole)), whole.masks)
        assert encoded.masks == encode_rle(whole.masks), "the run lengths must equal those of pycocotools"


def test_full_masks_that_no_machine_holds_are_refused_with_the_remedy(detector, monkeypatch):
    full, rles = Predictor(CONFIG, VARIABLES), Predictor(CONFIG, VARIABLES, masks="rle")
    monkeypatch.setattr(memory, "physical_memory", lambda: 10_000)
    large = picture(*PICTURES[2])
    sentence = r"2 masks of 64 x 96 pixels \(width x height\) would take 12.3 kB of memory, and 5 kB .*masks=\"rle\"\)"
    with pytest.raises(ImageError, match=sentence):
        full(large)
    assert len(rles(large).masks) == 2


def test_run_lengths_of_a_very_large_picture_take_little_memory():
    """In a picture of 20000 x 20000 pixels, 100 full masks would take 40 GB."""
    size, soft = (20_000, 20_000), np.zeros((100, 138, 138), np.float32)
    soft[:, 10:13, 20:24] = 1
    tracemalloc.start()
    rles = encode_crops(crops_in_picture(soft, size), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    # The object covers cells 10 to 12 and 20 to 23; edges are half-way between cells of 1 and of 0.
    cell = 20_000 / 138
    np.testing.assert_allclose(coco_mask.toBbox(rles[0]), [20 * cell, 10 * cell, 4 * cell, 3 * cell], atol=2)
    assert rles[0] == rles[-1]


def test_an_unknown_form_of_masks_is_refused():
    with pytest.raises(ConfigError, match="masks = 'polygons' is not one of 'full', 'rle', 'crop'"):
        Predictor(CONFIG, VARIABLES, masks="polygons")


def test_paths_and_pillows_pictures_are_pictures(detector, tmp_path):
    image = picture(*PICTURES[2])
    write_picture(tmp_path / "a.png", image)
    predictor = Predictor(CONFIG, VARIABLES)
    expected = predictor(image)
    pillow = PIL.Image.fromarray(image)
    found = predictor([tmp_path / "a.png", str(tmp_path / "a.png"), pillow, pillow.convert("P"), pillow.convert("RGBA")])
    for prediction in (predictor(tmp_path / "a.png"), predictor(pillow), *found):
        np.testing.assert_array_equal(prediction.boxes, expected.boxes)
        np.testing.assert_array_equal(prediction.masks, expected.masks)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.png", None, r"none.png cannot be read \(No such file"),
        ("text.png", b"no picture", "text.png is no picture that OpenCV can read"),
        ("empty.png", b"", "empty.png is no picture"),
        ("a\0b.png", None, "is no name that a file can have"),
        ("huge.png", huge_png(50_000, 50_000), r"huge.png cannot be decoded: it says that it has more pixels than OpenCV allows"),
    ],
)
def test_files_that_are_no_pictures_are_refused(detector, tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=sentence):
        Predictor(CONFIG, VARIABLES)(f"{tmp_path}/{name}")


def test_a_picture_that_makes_no_array_is_refused(detector):
    class Ragged:
        def __array__(self, *_, **__):
            return np.array([[1, 2], [3]])

    for ragged in (Ragged(), [[1, 2], [3]]):
        with pytest.raises(ImageError, match=r"Picture 1 is .*; it must be a uint8 array"):
            Predictor(CONFIG, VARIABLES)([picture(*PICTURES[0]), ragged])


def test_objects_as_json(detector):
    prediction = Predictor(CONFIG, VARIABLES)(picture(*PICTURES[2]))
    for form in ("rle", "crop"):
        assert as_json(Predictor(CONFIG, VARIABLES, masks=form)(picture(*PICTURES[2]))) == as_json(prediction)
    rows = json.loads(json.dumps(as_json(prediction)))
    assert [row["name"] for row in rows] == ["bright", "bright"]
    assert [row["class"] for row in rows] == [1, 1]
    np.testing.assert_allclose([row["box"] for row in rows], prediction.boxes)
    np.testing.assert_allclose([row["score"] for row in rows], prediction.scores)
    np.testing.assert_array_equal(decode_rle([row["rle"] for row in rows]), prediction.masks)
    for row in rows:
        (polygon,) = row["polygons"]
        xs, ys = polygon[::2], polygon[1::2]
        np.testing.assert_allclose([min(xs), min(ys), max(xs), max(ys)], row["box"], atol=1)


def test_a_real_detector_gets_what_the_evaluation_transform_makes():
    """The predictor of a tiny YOLACT returns the results of `detect` at the picture's scale.

    The input of `detect` is the stretched picture in float32.
    """
    model, variables = build_model(tiny_yolact.CONFIG), tiny_yolact.variables()
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    rows, columns = ((np.clip((np.arange(64) + 0.5) * side / 64 - 0.5, 0, side - 1)) for side in image.shape[:2])
    taps = [np.maximum(1 - np.abs(centers[:, None] - np.arange(side)), 0) for centers, side in ((rows, 90), (columns, 130))]
    stretched = np.einsum("Hh,hwc,Ww->HWc", taps[0], image.astype(np.float64), taps[1]).astype(np.float32)
    expected = jax.jit(lambda images: model.apply(variables, images, jnp.array([[90, 130]]), method="detect"))(stretched[None])
    found = Predictor(tiny_yolact.CONFIG, variables, top_k=5)(image)
    assert len(found) == 5
    np.testing.assert_allclose(found.scores, np.asarray(expected.scores)[0, :5], atol=1e-5)
    np.testing.assert_array_equal(found.classes, np.asarray(expected.classes)[0, :5])
    boxes = np.clip(np.asarray(expected.boxes)[0, :5], 0, 64) * np.array([130, 90, 130, 90]) / 64
    np.testing.assert_allclose(found.boxes, boxes, atol=0.02)
    soft = jax.jit(lambda masks: jax.image.resize(masks, (5, 90, 130), "linear", antialias=False))(np.asarray(expected.masks)[0, :5])
    assert (found.masks != (np.asarray(soft) > 0.5)).mean() < 1e-3
    assert not math.isclose(found.masks.mean(), 0)


@pytest.mark.slow
def test_mask_rcnn_from_picture_to_masks_is_torchvisions(golden):
    """All steps, with the resize, find the same 100 objects in each of two pictures.

    They are compared as sets, because adjacent scores differ by only 2e-5.
    """
    run = load_rcnn(golden, "tv_maskrcnn")
    for i, prediction in enumerate(Predictor(run.config, run.variables)(run.pictures())):
        expected = {key: run.golden[f"det_{key}{i}"] for key in ("boxes", "scores", "labels")}
        packed = f"det_masks{i}_packed"
        masks = np.unpackbits(run.golden[packed], axis=-1, count=prediction.masks.shape[2]).astype(bool)
        with_mask = dict(zip(run.golden.kept(np.arange(100), packed).tolist(), masks, strict=True))
        assert len(prediction) == 100
        taken, differing = set(), 0
        for box, mask, score, number in zip(prediction.boxes, prediction.masks, prediction.scores, prediction.classes, strict=True):
            distances = np.where(expected["labels"] == number + 1, np.abs(expected["boxes"] - box).max(1), np.inf)
            nearest = int(distances.argmin())
            taken.add(nearest)
            assert distances[nearest] < 0.05
            assert abs(score - expected["scores"][nearest]) < 1e-3
            differing += (mask != with_mask.get(nearest, mask)).sum()
        assert len(taken) == 100
        assert differing < 1e-3 * masks.sum()
