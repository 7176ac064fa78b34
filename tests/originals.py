"""The goldens of dbolya/yolact, converted to our conventions."""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from binary_masks import resize_binary_masks
from goldens import Golden, input_picture, load_arrays, load_json
from rebuilt_weights import yolact_weights

import jaxseg
from jaxseg.config import Config
from jaxseg.models.yolact.outputs import YolactOutputs
from jaxseg.structures import Batch, InputSpec, Targets

# The configuration for each run of the original.
RUNS = {
    "yolact_r50": "yolact_resnet50_s0",
    "yolact_r101": "yolact_base_s0",
    "yolact_darknet53": "yolact_darknet53_s0",
    "yolact_im400_r101": "yolact_im400_s0",
    "yolact_r50_pascal": "yolact_resnet50_pascal_s0",
    "yolact_plus_r50": "yolact_plus_resnet50_s0",
}
LOSS_NAMES = {"box": "B", "class": "C", "mask": "M", "mask_iou": "I", "semantic": "S"}


@dataclasses.dataclass
class Run:
    """One configuration with the weights and arrays of the original's run."""

    config: Config
    folder: Path
    model: jaxseg.models.Detector
    variables: dict[str, Any]

    def arrays(self, name: str) -> Golden:
        return load_arrays(self.folder / f"{name}.npz")

    def json(self, name: str) -> dict[str, Any]:
        return load_json(self.folder / f"{name}.json")

    def images(self) -> np.ndarray:
        """Both images at the size of the input, RGB, resized as in the original's evaluation."""
        size = self.config.model.image_size
        images = np.stack([input_picture(f"yolact{i}") for i in (0, 1)]).astype(np.float32)
        return images if images.shape[1] == size else np.stack([cv2.resize(image, (size, size)) for image in images])

    def check_outputs(self, outputs: YolactOutputs) -> None:
        """Compares the outputs for the first image, of which the files keep every n-th row."""
        meta = self.json("meta")
        for file, name, ours in (
            ("heads", "loc", np.asarray(outputs.box_deltas)[0]),
            ("heads", "mask", np.asarray(outputs.mask_coefficients)[0, :: meta["stride_mask"]]),
            ("conf_raw", "conf_raw", np.asarray(outputs.class_logits)[0, :: meta["stride_conf"]]),
            ("proto", "proto", np.asarray(outputs.prototypes)[0]),
        ):
            arrays = self.arrays(file)
            np.testing.assert_allclose(arrays.kept(ours, name), arrays[name], atol=5e-4, err_msg=name)


def load_run(golden: Path, name: str, **overrides: Any) -> Run:
    config = jaxseg.load_config(f"configs/{name}.py", {"model.dtype": "float32", **overrides})
    folder = golden / "yolact" / RUNS[name]
    return Run(config, folder, jaxseg.build_model(config), jaxseg.load_weights(yolact_weights(folder), config))


def targets(arrays: dict[str, np.ndarray], spec: InputSpec, prefix: str = "", rows: int = 8) -> Targets:
    """Converts the ground truth of both images.

    In the goldens, boxes are fractions, masks have 550 pixels, and crowds are last with class -1.
    """
    images = []
    for i in (0, 1):
        truth, count = arrays[f"{prefix}target{i}"], len(arrays[f"{prefix}target{i}"])
        masks = np.unpackbits(arrays[f"{prefix}masks{i}_packed"], axis=1)[:, : 550 * 550].reshape(count, 550, 550)
        valid = np.arange(rows) < count
        crowd = valid & (np.arange(rows) >= count - arrays[f"{prefix}num_crowds"][i])
        boxes = np.zeros((rows, 4), np.float32)
        boxes[:count] = truth[:, :4] * np.float32(spec.input_sizes[0][0])
        classes = np.zeros(rows, np.int32)
        classes[:count] = np.maximum(truth[:, 4], 0)
        instance = np.zeros((rows, *spec.mask_size), bool)
        instance[:count] = resize_binary_masks(masks, spec.mask_size)
        semantic = np.zeros((spec.num_classes, *spec.semantic_size), bool)
        for row, mask in enumerate(resize_binary_masks(masks, spec.semantic_size)):
            if not crowd[row]:
                semantic[classes[row]] |= mask
        images.append(Targets(boxes, classes, valid, crowd, np.packbits(instance, -1), np.packbits(semantic, -1)))
    return jax.tree.map(lambda *rows: np.stack(rows), *images)


def training_batch(run: Run) -> Batch:
    return Batch(
        images=run.images(),
        image_sizes=np.full((2, 2), 550, np.int32),
        indices=np.arange(2, dtype=np.int32),
        valid=np.ones(2, bool),
        targets=targets(run.arrays("train"), run.model.input_spec),
    )


def original_name(path: str, config: Config) -> str:
    """Returns dbolya/yolact's name of one of our parameters."""
    modules = dict(jaxseg.weights.names.yolact.modules(config.model))
    module, leaf = path.rsplit("/", 1)
    return f"{modules[module]}.{'bias' if leaf == 'bias' else 'weight'}"
