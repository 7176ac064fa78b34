"""Whole R-CNN detectors with rebuilt weights against what the four originals computed."""

from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rcnn_originals import RUNS, RcnnRun, load_rcnn, strided

from jaxseg.models.rcnn import Rcnn
from jaxseg.weights.origins import recognise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, golden: Path) -> RcnnRun:
    return load_rcnn(golden, request.param)


@pytest.fixture(scope="module")
def found(run: RcnnRun) -> dict[str, Any]:
    """Everything that detection computes on the golden's two pictures."""

    def look(model: Rcnn, images: jax.Array, sizes: jax.Array) -> dict[str, Any]:
        levels = model.pyramid(images, sizes, train=False)
        outputs = model(images, sizes)
        return {
            "levels": levels,
            "rpn": model.rpn(levels),
            "proposals": (outputs.proposals, outputs.proposals_valid),
            "detections": model.detect(images, sizes),
        }

    program = jax.jit(lambda variables, *inputs: run.model.apply(variables, *inputs, method=look))
    return jax.device_get(program(run.variables, *run.inputs()))


def test_the_pyramid(run: RcnnRun, found: dict[str, Any]) -> None:
    for i, level in enumerate(found["levels"]):
        expected = run.golden[f"p{i + 2}_sub"]
        np.testing.assert_allclose(strided(level, expected), expected, atol=1e-4 * np.abs(expected).max(), err_msg=f"P{i + 2}")


def test_the_rpn(run: RcnnRun, found: dict[str, Any]) -> None:
    """Logits and deltas of every anchor."""
    for i, (objectness, deltas) in enumerate(zip(*found["rpn"], strict=True)):
        logits, all_deltas = run.golden[f"rpn_logits{i}"], run.golden[f"rpn_deltas{i}"]
        images, shapes, height, width = logits.shape
        expected = np.moveaxis(logits, 1, -1).reshape(images, -1)
        np.testing.assert_allclose(objectness[:images], expected, atol=1e-4 * np.abs(expected).max())
        expected = np.moveaxis(all_deltas.reshape(images, shapes, 4, height, width), (1, 2), (-2, -1)).reshape(images, -1, 4)
        np.testing.assert_allclose(deltas[:images], expected, atol=1e-4 * np.abs(expected).max())


def unmatched(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> int:
    """How many of their rows have no row of ours nearby, each of ours serving once."""
    free, missing = np.ones(len(ours), bool), 0
    for row in theirs:
        distance = np.where(free, np.abs(ours - row).max(1, initial=0), np.inf)
        nearest = distance.argmin() if len(ours) else 0
        if len(ours) and distance[nearest] <= tolerance:
            free[nearest] = False
        else:
            missing += 1
    return missing


def test_the_proposals(run: RcnnRun, found: dict[str, Any]) -> None:
    proposals, valid = found["proposals"]
    for i in (0, 1):
        ours = proposals[i][valid[i]]
        theirs = run.golden[f"proposals{i}"][:, :4]
        assert len(ours) == len(theirs)
        assert unmatched(ours, theirs, 0.05) <= 2


def test_the_detections(run: RcnnRun, found: dict[str, Any]) -> None:
    """The same set, boxes within 0.05 px, scores within 1e-3."""

    def rows(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """One tolerance for all: a score's 1e-3 is a box's 0.05, and another class is far away."""
        return np.concatenate([boxes, scores[:, None] * 50, classes[:, None] * 1000], 1)

    detections = found["detections"]
    for i in (0, 1):
        valid = np.asarray(detections.valid[i])
        assert valid[: valid.sum()].all()
        ours = rows(*(np.asarray(values[i])[valid] for values in (detections.boxes, detections.scores, detections.classes)))
        theirs = rows(*run.detections(i))
        assert len(ours) == len(theirs)
        assert unmatched(ours, theirs, 0.05) == 0


def test_the_masks(run: RcnnRun, found: dict[str, Any]) -> None:
    """Probabilities of every detection's 28 x 28 cells."""
    detections = found["detections"]
    for i in (0, 1):
        names = [name for name in ("mask_prob28_", "raw_masks28_", "det_masks28_") if f"{name}{i}" in run.golden]
        if not names:
            pytest.skip("this golden has masks in the picture only")
        boxes, _, classes = run.detections(i)
        ours = np.concatenate([detections.boxes[i], detections.classes[i][:, None] * 1000.0], 1)
        for box, label, mask in zip(boxes, classes, run.golden[f"{names[0]}{i}"], strict=True):
            row = np.abs(ours - [*box, label * 1000]).max(1).argmin()
            np.testing.assert_allclose(detections.masks[i][row], mask, atol=1e-3)


@pytest.fixture(scope="module")
def learned(run: RcnnRun) -> tuple[dict[str, float], Any]:
    """Losses and gradients of one training batch. The originals sampled the first candidates in index order."""

    def first_come(key: jax.Array, shape: tuple[int, ...], *_: Any) -> jax.Array:
        return jnp.broadcast_to(1 - jnp.arange(shape[-1], dtype=jnp.float32) / (shape[-1] + 1), shape)

    batch = run.batch()

    def total(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables = run.variables | {"params": params}
        losses, _ = run.model.apply(
            variables, batch, train=True, method="losses", rngs={"sampling": jax.random.key(0)}, mutable=["batch_stats"]
        )
        return sum(losses.values()), losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", first_come)
        (_, losses), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(run.variables["params"])
    return {name: float(value) for name, value in losses.items()}, jax.device_get(gradients)


# What crops of the ground truth's masks cost, beside polygons drawn at 28 x 28 cells (docs/differences.md).
MASK_TOLERANCE = {"tv": 2e-3, "mmdet": 1e-4, "mrb": 2e-3, "d2": 4e-3}


def test_the_losses(run: RcnnRun, learned: tuple[dict[str, float], Any]) -> None:
    """With the originals' samples: from pixels through proposals, matching and sampling to each loss."""
    losses, _ = learned
    expected = run.losses()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = MASK_TOLERANCE[run.name.partition("_")[0]] if name == "mask" else 1e-4
        assert losses[name] == pytest.approx(value, rel=tolerance), name


def test_the_gradients(run: RcnnRun, learned: tuple[dict[str, float], Any]) -> None:
    """Norms of every gradient that the golden has."""
    paths = flax.traverse_util.flatten_dict({"params": learned[1]}, sep="/")
    origin = recognise(run.state_dict, run.config.model, paths)
    names = {their: ours for ours, their in origin.names(run.config.model, paths).items()}
    checked = 0
    for key in run.golden:
        kind, _, name = key.partition("/")
        if kind == "gnorm" and name in names:
            ours = origin.to_theirs(run.config.model, names[name], np.asarray(paths[names[name]], np.float64))
            # Masks learn from crops of the ground truth, see MASK_TOLERANCE.
            tolerance = 2e-2 if "mask" in name else 2e-3
            assert np.linalg.norm(ours) == pytest.approx(float(run.golden[key]), rel=tolerance, abs=1e-6), name
            checked += 1
    assert checked > 15


def test_the_mask_loss_of_polygons(run: RcnnRun) -> None:
    """With the targets that maskrcnn-benchmark and detectron2 draw in each region, the loss is theirs."""
    if not run.name.startswith(("mrb", "d2")):
        pytest.skip("learns from bitmaps")
    images, sizes = run.inputs()
    rows = max(len(run.golden[f"train_roi_pos{i}"]) for i in (0, 1))
    boxes, classes = np.zeros((2, rows, 4), np.float32), np.zeros((2, rows), np.int32)
    targets = []
    truth = run.batch().targets
    for i in (0, 1):
        regions, objects = run.positives(i)
        boxes[i, : len(regions)], classes[i, : len(regions)] = regions, truth.classes[i][objects]
        targets.append(run.polygon_targets(i, regions, objects))

    def predict(model: Rcnn, images: jax.Array, sizes: jax.Array, boxes: jax.Array, classes: jax.Array) -> jax.Array:
        return model.predict_masks(model.pyramid(images, sizes, train=False), boxes, classes, train=False)

    logits = jax.jit(lambda *inputs: run.model.apply(*inputs, method=predict))(run.variables, images, sizes, boxes, classes)
    logits = np.concatenate([np.asarray(logits[i][: len(target)], np.float64) for i, target in enumerate(targets)])
    entropy = np.logaddexp(0, logits) - logits * np.concatenate(targets)
    assert entropy.mean() == pytest.approx(run.losses()["mask"], rel=1e-4)
