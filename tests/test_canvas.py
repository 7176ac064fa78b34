"""Each picture on its own canvas, as the originals evaluate it, or on one of a few shapes."""

import dataclasses
import json
import logging
import math

import cv2
import jax
import numpy as np
import pytest
import white_boxes
from jax.sharding import Mesh
from rcnn_originals import RUNS, RcnnRun, load_rcnn
from test_rcnn import unmatched
from test_validation import LearningDetector
from tiny_rcnn import TINY
from white_boxes import CONFIG, SIZE, VARIABLES, picture

import jaxseg
from jaxseg.config import Config, ConfigError, override
from jaxseg.data.sources.from_config import open_dataset
from jaxseg.data.views.from_spec import view_rule
from jaxseg.devices import make_mesh
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.models import InputConfig, RcnnConfig, RetinaNetConfig, YolactConfig, build_model
from jaxseg.predictor import Prediction, Predictor
from jaxseg.structures import InputSpec, Resize
from jaxseg.training.validation import Validation

SPEC = build_model(Config(model=RcnnConfig())).input_spec
OWN, SHAPES = view_rule(SPEC, "own"), view_rule(SPEC)


@pytest.mark.parametrize(
    ("picture_size", "image_size", "input_size"),
    [
        ((480, 640), (800, 1066), (800, 1088)),
        ((640, 480), (1066, 800), (1088, 800)),
        ((500, 500), (800, 800), (800, 800)),
        ((400, 500), (800, 1000), (800, 1024)),
        ((300, 900), (444, 1332), (448, 1344)),
        ((2000, 20), (1300, 13), (1312, 32)),
    ],
)
def test_an_own_canvas_is_the_picture_rounded_up_to_multiples_of_32(picture_size, image_size, input_size):
    view = OWN.whole(picture_size)
    assert (view.image_size, view.input_size) == (image_size, input_size)
    assert OWN.input_size(picture_size) == input_size
    in_shape = SHAPES.whole(picture_size)
    assert in_shape.image_size == image_size
    assert in_shape.input_size in ((800, 1344), (1344, 800))
    if max(picture_size) > 1000:
        return
    image = np.full((*picture_size, 3), 7, np.uint8)
    placed, shape = view.evaluation_image(image), in_shape.evaluation_image(image)
    np.testing.assert_array_equal(placed, shape[: input_size[0], : input_size[1]])
    assert not shape[input_size[0] :].any()


def test_a_picture_has_the_same_size_on_either_canvas_even_if_no_shape_holds_it():
    spec = dataclasses.replace(SPEC, input_sizes=((256, 320), (320, 256)))
    for size in ((480, 640), (2000, 1000), (100, 1000)):
        own, shape = (view_rule(spec, canvas).whole(size) for canvas in ("own", "shapes"))
        assert own.image_size == shape.image_size
        assert all(side <= limit for side, limit in zip(own.input_size, shape.input_size, strict=True))


def test_detectors_that_take_other_sizes_have_an_own_canvas_unless_shapes_are_listed():
    listed = Config(model=RcnnConfig(input=InputConfig(shapes=((512, 512),))))
    assert build_model(listed).input_spec.evaluation_canvas == "shapes"
    for model in (RcnnConfig(), RetinaNetConfig()):
        spec = build_model(Config(model=model)).input_spec
        assert (spec.size_divisor, spec.evaluation_canvas) == (32, "own")
    yolact = build_model(Config(model=YolactConfig())).input_spec
    assert (yolact.size_divisor, yolact.evaluation_canvas) == (0, "shapes")
    assert view_rule(yolact, "own").input_size((480, 640)) == (550, 550)
    padded = InputSpec(((32, 48),), None, None, 3, Resize("opencv", (32,), 48), "box")
    assert view_rule(padded, "own").input_size((30, 30)) == (32, 48)
    with pytest.raises(ConfigError, match=r"eval\.canvas = 'whole' is not one of 'auto', 'own', 'shapes'"):
        override(CONFIG, {"eval.canvas": "whole"})


class OwnCanvasDetector(LearningDetector):
    """A `PaddedDetector` that also takes other inputs, and that counts its programs by their sizes."""

    def __init__(self, mask_frame="box"):
        super().__init__(mask_frame)
        self.input_spec = dataclasses.replace(self.input_spec, size_divisor=SIZE // 2, evaluation_canvas="own")
        self.shapes: list[tuple[int, ...]] = []

    def apply(self, variables, batch, *arguments, method, **options):
        if method != "detect":
            return super().apply(variables, batch, *arguments, method=method, **options)
        self.shapes.append(batch.shape[:3])
        return jax.vmap(lambda image, size: self._one(image, size, variables["params"]["score"]))(batch, *arguments)


@pytest.fixture
def detector(use_detector):
    return use_detector(OwnCanvasDetector())


@pytest.fixture
def dataset(tmp_path):
    white_boxes.write_dataset(tmp_path / "data", 7)
    return open_dataset(override(CONFIG, {"data.root": str(tmp_path / "data")}), "val")


def test_evaluation_compiles_a_program_for_each_size_and_says_so(detector, dataset, tmp_path, caplog):
    """Four pictures need an input of 32 x 32, and four others each need one of another size.

    A batch has as many rows as there are pictures, rounded up to the number of devices.
    """
    with caplog.at_level(logging.INFO, logger="jaxseg"):
        metrics = evaluate(CONFIG, VARIABLES, dataset, batch_size=4, output=tmp_path / "own")
    assert metrics["box/AP"] == pytest.approx(1.0)
    sizes = {(32, 32): 4, (96, 32): 1, (64, 32): 1, (48, 32): 1, (32, 64): 1}
    devices = jax.local_device_count()
    assert sorted(detector.shapes) == sorted((math.ceil(count / devices) * devices, *size) for size, count in sizes.items())
    assert "own canvas, padded to multiples of 16 pixels: 5 programs" in caplog.text
    assert "compiled 5 programs in" in caplog.text
    assert caplog.text.count("compiling detection") == 1, "one line is enough"
    found = json.loads((tmp_path / "own" / "bbox_detections.json").read_text())
    assert [row["image_id"] for row in found] == [100 + i // 2 for i in range(14)]

    evaluate(override(CONFIG, {"eval.canvas": "shapes"}), VARIABLES, dataset, batch_size=4, output=tmp_path / "shapes")
    assert {shape[1:] for shape in detector.shapes[5:]} == set(detector.input_spec.input_sizes)
    assert json.loads((tmp_path / "shapes" / "bbox_detections.json").read_text()) == found


def test_prediction_is_one_by_one_unless_a_batch_size_is_given(detector, caplog):
    wide, tall = (SIZE, 2 * SIZE, (8, 4, 60, 28), 255), (2 * SIZE, SIZE, (4, 8, 28, 60), 100)
    kinds = [wide, tall, wide, wide, tall]
    with caplog.at_level(logging.INFO, logger="jaxseg"):
        alone = Predictor(CONFIG, VARIABLES)([picture(*kind) for kind in kinds])
    assert "detecting with each picture on its own canvas" in caplog.text
    assert detector.shapes == [(1, 32, 64), (1, 64, 32)]
    together = Predictor(CONFIG, VARIABLES, batch_size=2)([picture(*kind) for kind in kinds])
    assert detector.shapes[2:] == [(2, 32, 64), (2, 64, 32)]
    for kind, one, other in zip(kinds, alone, together, strict=True):
        assert one.boxes[0].tolist() == list(kind[2])
        np.testing.assert_array_equal(one.boxes, other.boxes)
    Predictor(override(CONFIG, {"eval.canvas": "shapes"}), VARIABLES)(picture(*wide))
    assert detector.shapes[4:] == [(1, SIZE, 3 * SIZE)]


def test_evaluation_during_training_takes_the_shapes(detector, dataset, tmp_path):
    config = override(CONFIG, {"eval.canvas": "own", "train.draw_images": 5})
    metrics, pictures = Validation(config, detector, dataset, mesh=make_mesh(), run_folder=tmp_path)(3, VARIABLES)
    assert metrics["val/box/AP"] == pytest.approx(1.0)
    assert len(pictures) == 5
    assert {shape[1:] for shape in detector.shapes} == set(detector.input_spec.input_sizes)


# ---- The originals ----

# The originals' two pictures were in one batch, so one of them was on a canvas larger than its own.
# On its own canvas, torchvision itself finds 70 other objects in it, out of 100.
ON_ITS_OWN_CANVAS = {name: int(name.startswith("tv")) for name in RUNS}


def own_size(run: RcnnRun, index: int) -> Config:
    """Returns the configuration in which a picture keeps its size, with the default canvas."""
    sides = {"model.input.longer_side": 448} if run.name.startswith("tv") else {}
    shorter = 320 if run.name.startswith("tv") else min(run.pictures()[index].shape[:2])
    return override(run.config, {**sides, "model.input.shapes": (), "model.input.shorter_side": (shorter,)})


def differing(run: RcnnRun, index: int, config: Config, found: Prediction) -> int:
    """Counts the original's detections in a picture that were not found.

    Boxes are compared within 0.05 pixels of the input, and scores within 1e-3.
    """
    size, spec = run.pictures()[index].shape[:2], build_model(config).input_spec
    view = view_rule(spec).whole(size)
    scale = np.tile(np.array(view.image_size) / size, 2)[[1, 0, 1, 0]]
    boxes, scores, classes = run.detections(index)
    # Predictions end at the far side of their last pixel.
    boxes = boxes + np.array((0, 0, spec.pixel_offset, spec.pixel_offset))
    ours = np.concatenate([found.boxes * scale, found.scores[:, None] * 50, found.classes[:, None] * 1000], 1)
    theirs = np.concatenate([boxes, scores[:, None] * 50, classes[:, None] * 1000], 1)
    assert len(ours) == len(theirs)
    return unmatched(ours, theirs, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_prediction_with_default_settings_is_the_originals(golden, name):
    run, index = load_rcnn(golden, name), ON_ITS_OWN_CANVAS[name]
    config = own_size(run, index)
    assert config.eval == Config(model=RcnnConfig()).eval
    assert differing(run, index, config, Predictor(config, run.variables, masks="crop")(run.pictures()[index])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_evaluation_with_default_settings_is_the_originals(golden, name, tmp_path):
    run, index = load_rcnn(golden, name), ON_ITS_OWN_CANVAS[name]
    image = run.pictures()[index]
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    assert cv2.imwrite(str(tmp_path / "val2017" / "1.png"), image[:, :, ::-1])
    categories = [{"id": k + 1, "name": f"class {k}"} for k in range(run.config.model.num_classes)]
    images = [{"id": 1, "file_name": "1.png", "height": image.shape[0], "width": image.shape[1]}]
    truth = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0, "segmentation": [[2, 2, 10, 2, 10, 10]]}
    ]
    (tmp_path / "annotations" / "instances_val2017.json").write_text(
        json.dumps({"images": images, "annotations": truth, "categories": categories})
    )
    names = {"data.class_names": [row["name"] for row in categories], "data.category_ids": [row["id"] for row in categories]}
    config = override(own_size(run, index), {**names, "data.root": str(tmp_path)})
    evaluate(config, run.variables, mesh=Mesh(np.array(jax.local_devices()[:1]), ("data",)), output=tmp_path)
    rows = json.loads((tmp_path / "bbox_detections.json").read_text())
    boxes, scores, classes = (np.array([row[key] for row in rows], np.float32) for key in ("bbox", "score", "category_id"))
    boxes[:, 2:] += boxes[:, :2]
    found = Prediction(boxes, None, scores, classes.astype(np.int32) - 1, (), image.shape[:2])
    assert differing(run, index, config, found) <= 1, "corners are written in thousandths of a pixel"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_both_pictures_on_the_canvas_of_their_batch_are_the_originals(golden, name):
    run = load_rcnn(golden, name)
    canvas = tuple(int(side) for side in run.golden["net_shape"][2:])
    for index, image in enumerate(run.pictures()):
        config = override(own_size(run, index), {"model.input.shapes": (canvas,)})
        assert differing(run, index, config, Predictor(config, run.variables, masks="crop")(image)) == 0


@pytest.mark.parametrize("name", ["mask_rcnn_r50_fpn_1x", "retinanet_r50_fpn_1x"])
def test_a_canvas_may_have_fewer_anchors_than_there_are_proposals(name):
    """A stripe of 1 x 500 pixels, which maskrcnn-benchmark's rounding makes a pixel, is an example."""
    tiny = {
        key: value
        for key, value in TINY.items()
        if name.startswith("mask") or not key.startswith(("model.rpn", "model.roi", "model.anchor"))
    }
    config = override(jaxseg.load_config(f"configs/{name}.py"), tiny | ({} if name.startswith("mask") else {"model.pre_nms": 5000}))
    model = build_model(config)
    assert view_rule(model.input_spec, "own").input_size((1, 500)) == (32, 32)
    variables = jax.eval_shape(lambda: jaxseg.init_variables(model, config))
    arguments = (jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32), jax.ShapeDtypeStruct((1, 2), np.int32))
    found = jax.eval_shape(lambda *given: model.apply(*given, method="detect"), variables, *arguments)
    assert found.boxes.shape[0] == 1
