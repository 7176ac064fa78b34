"""Whole R-CNN detectors with rebuilt weights against what the four originals computed."""

from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import pytest
from original_masks import original_mask_targets
from rcnn_originals import RUNS, RcnnRun, first_come, load_rcnn, strided

from jaxseg.evaluation.paste import paste_masks
from jaxseg.models import roi_heads
from jaxseg.models.rcnn import Rcnn
from jaxseg.weights.names.registry import recognise

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
    """Probabilities of every detection's 28 x 28 cells; mmdetection's golden has the masks in the picture instead."""
    detections, spec = found["detections"], run.model.input_spec
    if spec.mask_size is None:
        assert detections.masks is None
        return
    for i in (0, 1):
        boxes, _, classes = run.detections(i)
        ours = np.concatenate([detections.boxes[i], detections.classes[i][:, None] * 1000.0], 1)
        theirs = np.concatenate([boxes, classes[:, None] * 1000.0], 1)
        cells = detections.masks[i][np.abs(ours - theirs[:, None]).max(2).argmin(1)]
        if run.name.startswith("mmdet"):
            size = tuple(int(side) for side in run.golden[f"ori_shape{i}"][:2])
            packed = run.golden[f"det_masks{i}_packed"]
            expected = np.unpackbits(packed, axis=-1)[..., : size[1]].astype(bool)
            pasted = paste_masks(cells, boxes / run.golden[f"scale_factor{i}"], size, spec.mask_frame)
            assert (pasted != expected).sum() < 1e-4 * expected.sum()
        else:
            np.testing.assert_allclose(cells, run.mask_cells(i), atol=1e-3)


class Learned(NamedTuple):
    """Of one training batch: losses and gradients with the originals' mask targets, and the losses with ours."""

    losses: dict[str, float]
    gradients: dict[str, Any]
    losses_of_crops: dict[str, float]


@pytest.fixture(scope="module")
def learned(run: RcnnRun) -> Learned:
    batch = run.batch()

    def total(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables, rngs = run.variables | {"params": params}, {"sampling": jax.random.key(0)}
        losses, _ = run.model.apply(variables, batch, train=True, method="losses", rngs=rngs, mutable=["batch_stats"])
        return sum(losses.values()), losses

    def program(params: Any) -> tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]:
        of_crops = total(params)[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(roi_heads, "box_mask_targets", original_mask_targets(run))
            (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(params)
        return losses, gradients, of_crops

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", first_come)
        return Learned(*jax.device_get(jax.jit(program)(run.variables["params"])))


def test_the_losses(run: RcnnRun, learned: Learned) -> None:
    """With the originals' samples: from pixels through proposals, matching and sampling to each loss."""
    expected = run.losses()
    assert learned.losses.keys() == expected.keys()
    for name, value in expected.items():
        assert learned.losses[name] == pytest.approx(value, rel=1e-4), name


def test_the_gradients(run: RcnnRun, learned: Learned) -> None:
    """Norms of every gradient that the golden has."""
    paths = flax.traverse_util.flatten_dict({"params": learned.gradients}, sep="/")
    origin = recognise(run.state_dict, run.config.model, paths)
    names = {their: ours for ours, their in origin.names(run.config.model, paths).items()}
    checked = 0
    for key in run.golden:
        kind, _, name = key.partition("/")
        if kind == "gnorm" and name in names:
            ours = origin.to_theirs(run.config.model, names[name], np.asarray(paths[names[name]], np.float64))
            assert np.linalg.norm(ours) == pytest.approx(float(run.golden[key]), rel=1e-3, abs=1e-6), name
            checked += 1
    assert checked > 15


# The figures of docs/differences.md.
COST_OF_CROPS = {"tv": 1e-3, "mmdet": 1e-4, "mrb": 1.3e-3, "d2": 2.8e-3}


def test_what_crops_cost(run: RcnnRun, learned: Learned) -> None:
    """Masks that come to the device as bits over their box change the loss of masks by so much, and no other."""
    for name, value in run.losses().items():
        allowed = COST_OF_CROPS[run.name.partition("_")[0]] if name == "mask" else 1e-4
        assert learned.losses_of_crops[name] == pytest.approx(value, rel=allowed), name
