"""Whole R-CNN detectors with rebuilt weights, compared with the results of the four originals."""

from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
import pytest
from rcnn_originals import RUNS, RcnnRun, first_come, load_rcnn, strided

from jaxseg.evaluation.paste import paste_masks
from jaxseg.models.rcnn.network import Rcnn
from jaxseg.structures import Detections
from jaxseg.weights.names.registry import recognise

# The short tests detect with two of the originals. test_rcnn_variants.py and test_retinanet.py
# compare small models, also in what they learn.
SHORT = ("tv_fasterrcnn", "mrb_maskrcnn")
ALL_RUNS = [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in RUNS]


@pytest.mark.parametrize("name", ALL_RUNS)
def test_what_is_found_is_the_originals(golden: Path, name: str) -> None:
    """All stages of detection on both pictures are compared."""
    run = load_rcnn(golden, name)

    @jax.jit
    def detect(variables: dict[str, Any], images: jax.Array, sizes: jax.Array) -> tuple[Detections, dict[str, Any]]:
        """Returns the detections, and what the methods returned that the detector called on its way."""

        def stage(module: nn.Module, method: str) -> bool:
            return isinstance(module, Rcnn) and method in ("pyramid", "_propose")

        return run.model.apply(variables, images, sizes, method="detect", capture_intermediates=stage, mutable=["intermediates"])

    detections, stages = jax.device_get(detect(run.variables, *run.inputs()))
    (levels,), ((rpn, proposals),) = stages["intermediates"]["pyramid"], stages["intermediates"]["_propose"]
    assert_same_pyramid(run, levels)
    assert_same_rpn_outputs(run, levels, *rpn)
    assert_same_proposals(run, proposals.boxes, proposals.valid)
    assert_same_detections(run, detections)
    if run.model.input_spec.mask_size is None:
        assert detections.masks is None
    else:
        assert_same_masks(run, detections)


def assert_same_pyramid(run: RcnnRun, levels: list[np.ndarray]) -> None:
    for i, level in enumerate(levels):
        expected = run.golden[f"p{i + 2}_sub"]
        np.testing.assert_allclose(strided(level, expected), expected, atol=1e-4 * np.abs(expected).max(), err_msg=f"P{i + 2}")


def assert_same_rpn_outputs(run: RcnnRun, levels: list[np.ndarray], logits: list[np.ndarray], deltas: list[np.ndarray]) -> None:
    """Compares logits and deltas of the anchors."""
    for i, level in enumerate(levels):
        for name, values in ((f"rpn_logits{i}", logits[i]), (f"rpn_deltas{i}", deltas[i])):
            expected = run.golden[name]
            maps = np.moveaxis(values.reshape(*level.shape[:3], -1), -1, 1)[: len(expected)]
            np.testing.assert_allclose(run.golden.kept(maps, name), expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def unmatched(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> int:
    """Counts the rows of theirs without a row of ours nearby, where each of ours is used once."""
    free, missing = np.ones(len(ours), bool), 0
    for row in theirs:
        distance = np.where(free, np.abs(ours - row).max(1, initial=0), np.inf)
        nearest = distance.argmin() if len(ours) else 0
        if len(ours) and distance[nearest] <= tolerance:
            free[nearest] = False
        else:
            missing += 1
    return missing


def assert_same_proposals(run: RcnnRun, proposals: np.ndarray, valid: np.ndarray) -> None:
    for i in (0, 1):
        ours = proposals[i][valid[i]]
        theirs = run.golden[f"proposals{i}"][:, :4]
        assert len(ours) == len(theirs)
        assert unmatched(ours, theirs, 0.05) <= 2


def assert_same_detections(run: RcnnRun, detections: Detections) -> None:
    """Compares detections as sets, with boxes within 0.05 pixels and scores within 1e-3."""

    def rows(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Scales all values to one tolerance: a score's 1e-3 equals a box's 0.05 pixels.

        Different classes are farther apart than the tolerance.
        """
        return np.concatenate([boxes, scores[:, None] * 50, classes[:, None] * 1000], 1)

    for i in (0, 1):
        valid = np.asarray(detections.valid[i])
        assert valid[: valid.sum()].all()
        ours = rows(*(np.asarray(values[i])[valid] for values in (detections.boxes, detections.scores, detections.classes)))
        theirs = rows(*run.detections(i))
        assert len(ours) == len(theirs)
        assert unmatched(ours, theirs, 0.05) == 0


def assert_same_masks(run: RcnnRun, detections: Detections) -> None:
    """Compares the probabilities of 28 x 28 cells or, for mmdetection, the masks in the picture."""
    for i in (0, 1):
        name = run.masks_name(i)
        expected = run.golden[name]
        boxes, _, classes = (run.golden.kept(values, name) for values in run.detections(i))
        ours = np.concatenate([detections.boxes[i], detections.classes[i][:, None] * 1000.0], 1)
        theirs = np.concatenate([boxes, classes[:, None] * 1000.0], 1)
        cells = detections.masks[i][np.abs(ours - theirs[:, None]).max(2).argmin(1)]
        if run.name.startswith("mmdet"):
            size = tuple(int(side) for side in run.golden[f"ori_shape{i}"][:2])
            bits = np.unpackbits(expected, axis=-1)[..., : size[1]].astype(bool)
            pasted = paste_masks(cells, boxes / run.golden[f"scale_factor{i}"], size, run.model.input_spec.mask_frame)
            assert (pasted != bits).sum() < 1e-4 * bits.sum()
        else:
            np.testing.assert_allclose(cells, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_what_is_learned_is_the_originals(golden: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares all losses and gradients, from pixels and annotations, with the originals' samples."""
    # The originals found at most 39 positives, so a lower fraction changes no sample and is faster.
    run = load_rcnn(golden, name, **{"model.roi.positive_fraction": 0.125})
    batch = run.batch()
    monkeypatch.setattr(jax.random, "uniform", first_come)

    def total(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables, rngs = run.variables | {"params": params}, {"sampling": jax.random.key(0)}
        losses, _ = run.model.apply(variables, batch, train=True, method="losses", rngs=rngs, mutable=["batch_stats"])
        return sum(losses.values()), losses

    program = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, losses), gradients = jax.device_get(program(run.variables["params"]))
    expected = run.losses()
    assert losses.keys() == expected.keys()
    for loss, value in expected.items():
        assert losses[loss] == pytest.approx(value, rel=1e-4), loss
    assert_same_gradients(run, gradients)


def assert_same_gradients(run: RcnnRun, gradients: dict[str, Any]) -> None:
    """Compares the norms of all gradients that the golden contains."""
    paths = flax.traverse_util.flatten_dict({"params": gradients}, sep="/")
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
