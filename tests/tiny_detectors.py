"""Tiny detectors of the originals: their recorded results, and weights rebuilt from their names.

Each file `tests/data/two_stage/tiny_*.npz` was made with an original's own model, with a few
channels and one block per stage, which ran on a CPU in float32. Two of its compiled operations were
replaced by PyTorch code, which was compared with goldens of the compiled ones: greedy suppression
(IoU above the threshold) and RoIAlign.

The arrays are `names` and `shapes` of the state dictionary; the pictures `image{i}`, RGB; the
ground truth `boxes{i}` and `classes{i}` (from 0); the losses `loss/...`; the gradients of the sum
of all losses, as `gradient_norm` and `gradient_dot` (the product with the parameter itself) for
each parameter of `learning`; and `detected_*{i}` in descending order of scores.
"""

import functools
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

import jaxseg
from jaxseg.config import Config
from jaxseg.models import Detector
from jaxseg.structures import Batch, Detections, Targets
from jaxseg.weights.names.rules import NameTable

DATA = Path(__file__).parent / "data" / "two_stage"


def load(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"tiny_{name}.npz"))


def state_dict(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rebuilds the weights of a run."""
    shapes = json.loads(str(arrays["shapes"]))
    return {name: parameter(name, tuple(shape)) for name, shape in zip(arrays["names"].tolist(), shapes, strict=True)}


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Makes noise from the name as a seed, with a scale that keeps activations near 1."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    module, leaf = name.rsplit(".", 1)
    if leaf == "running_var":
        return 1 + 0.2 * np.abs(noise)
    if leaf != "weight":
        # Only few anchors get a high score.
        return 0.1 * noise - (1.5 if module.endswith("cls_logits") else 0)
    if len(shape) == 1:
        # Residual branches have small outputs.
        return (0.3 if module.endswith(("bn3", "conv3.norm")) else 1) * (1 + 0.1 * noise)
    gain = math.sqrt(2 / math.prod(shape[1:]))
    if module.endswith("stem.conv1"):
        # The input's colours are in 0..255.
        gain /= 100
    elif module.endswith("cls_logits"):
        gain /= 5
    return np.float32(gain) * noise


def inputs(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns both pictures in inputs of one size, and their heights and widths."""
    pictures = [arrays[f"image{i}"] for i in (0, 1)]
    images = np.zeros((2, *np.max([picture.shape for picture in pictures], 0)), np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[: picture.shape[0], : picture.shape[1]] = picture
    return images, np.int32([picture.shape[:2] for picture in pictures])


def training_batch(arrays: dict[str, np.ndarray], mask_crop: int | None = None, rows: int = 4) -> Batch:
    """Makes a batch of both pictures with their ground truth.

    With `mask_crop`, objects have masks of this size, which are empty.
    """
    images, sizes = inputs(arrays)
    boxes, classes, valid = np.zeros((2, rows, 4), np.float32), np.zeros((2, rows), np.int32), np.zeros((2, rows), bool)
    for i in (0, 1):
        count = len(arrays[f"boxes{i}"])
        boxes[i, :count], classes[i, :count], valid[i, :count] = arrays[f"boxes{i}"], arrays[f"classes{i}"], True
    masks = None if mask_crop is None else np.zeros((2, rows, mask_crop, mask_crop // 8), np.uint8)
    targets = Targets(boxes, classes, valid, np.zeros((2, rows), bool), masks, None)
    return Batch(images, sizes, np.arange(2, dtype=np.int32), np.ones(2, bool), targets)


def learning(model: Detector, variables: dict[str, Any]) -> Callable[[Batch], tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Returns a program for the losses, and for the gradient of their sum by the paths of our parameters."""

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        losses = model.apply(variables | {"params": params}, batch, train=True, method="losses", rngs={"sampling": jax.random.key(0)})
        return sum(losses.values()), losses

    def learn(batch: Batch) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        (_, losses), gradient = jax.device_get(total(variables["params"], batch))
        return losses, traverse_util.flatten_dict(gradient, sep="/")

    return learn


def check_gradients(
    arrays: dict[str, np.ndarray], config: Config, gradient: dict[str, np.ndarray], variables: dict[str, Any], origin: NameTable
) -> None:
    """Checks that the gradients have the norms and directions of the original's.

    Parameters that did not learn in the original must not learn here.
    """
    model, params = jaxseg.build_model(config), traverse_util.flatten_dict(variables["params"], sep="/")
    names = origin.names(config.model, [f"params/{path}" for path in gradient])
    norms = dict(zip(arrays["learning"].tolist(), arrays["gradient_norm"], strict=True))
    dots = dict(zip(arrays["learning"].tolist(), arrays["gradient_dot"], strict=True))
    assert {names[f"params/{path}"] for path in gradient if model.learns(tuple(path.split("/")))} == norms.keys()
    for path, ours in gradient.items():
        name, norm = names[f"params/{path}"], np.linalg.norm(ours.astype(np.float64))
        if name in norms:
            np.testing.assert_allclose(norm, norms[name], rtol=2e-4, atol=1e-7, err_msg=name)
            dot = np.vdot(ours.astype(np.float64), params[path])
            bound = 2e-4 * norms[name] * np.linalg.norm(params[path])
            assert abs(dot - dots[name]) <= bound, f"{name}: {dot} against {dots[name]}"


def check_detections(arrays: dict[str, np.ndarray], detections: Detections) -> list[int]:
    """Compares boxes, scores and classes of both pictures in order, and returns their numbers."""
    counts = []
    for i in (0, 1):
        count = len(arrays[f"detected_scores{i}"])
        counts.append(count)
        assert detections.valid[i].sum() == count
        np.testing.assert_allclose(detections.scores[i, :count], arrays[f"detected_scores{i}"], atol=1e-5)
        np.testing.assert_array_equal(detections.classes[i, :count], arrays[f"detected_classes{i}"])
        np.testing.assert_allclose(detections.boxes[i, :count], arrays[f"detected_boxes{i}"], atol=2e-3)
    return counts
