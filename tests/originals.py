"""The goldens of dbolya/yolact in our conventions."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

import jaxseg
from jaxseg.config import Config
from jaxseg.data.views.image_masks import resize_binary_masks
from jaxseg.models.yolact import YolactOutputs
from jaxseg.structures import Batch, InputSpec, Targets

FUNCTIONS = Path(__file__).parent / "data" / "yolact"
# Our config beside the original's run.
RUNS = {
    "yolact_r50": "yolact_resnet50_s0",
    "yolact_r101": "yolact_base_s0",
    "yolact_darknet53": "yolact_darknet53_s0",
    "yolact_im400_r101": "yolact_im400_s0",
    "yolact_r50_pascal": "yolact_resnet50_pascal_s0",
}
LOSS_NAMES = {"box": "B", "class": "C", "mask": "M", "semantic": "S"}


def functions(name: str) -> dict[str, np.ndarray]:
    """A golden of the original's single functions."""
    return dict(np.load(FUNCTIONS / f"{name}.npz"))


def load_rebuild(golden: Path) -> Any:
    """The module that makes a run's weights from their names."""
    spec = importlib.util.spec_from_file_location("rebuild", golden / "rebuild.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass
class Run:
    """One config with the weights and arrays of the original's run."""

    config: Config
    folder: Path
    model: jaxseg.models.Detector
    variables: dict[str, Any]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / f"{name}.npz"))

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text())

    def images(self) -> np.ndarray:
        """Both images at network size, RGB; resized as the original's evaluation does."""
        size = self.config.model.image_size
        images = self.arrays("feats")["image_bgr"][..., ::-1].astype(np.float32)
        return images if images.shape[1] == size else np.stack([cv2.resize(image, (size, size)) for image in images])

    def check_outputs(self, outputs: YolactOutputs) -> None:
        """Of the first image: the original's, of which some keep every n-th row only."""
        meta, heads = self.json("meta"), self.arrays("heads")
        np.testing.assert_allclose(outputs.box_deltas[0], heads["loc"], atol=5e-4)
        np.testing.assert_allclose(outputs.mask_coefficients[0, :: meta["stride_mask"]], heads["mask"], atol=5e-4)
        np.testing.assert_allclose(outputs.class_logits[0, :: meta["stride_conf"]], self.arrays("conf_raw")["conf_raw"], atol=5e-4)
        np.testing.assert_allclose(outputs.prototypes[0], self.arrays("proto")["proto"], atol=5e-4)


def load_run(golden: Path, name: str, **overrides: Any) -> Run:
    config = jaxseg.load_config(f"configs/{name}.py", {"model.dtype": "float32", **overrides})
    folder = golden / "yolact" / RUNS[name]
    state_dict = load_rebuild(golden).yolact_state_dict(folder)
    return Run(config, folder, jaxseg.build_model(config), jaxseg.load_weights(state_dict, config))


def targets(arrays: dict[str, np.ndarray], spec: InputSpec, prefix: str = "", rows: int = 8) -> Targets:
    """Both images' ground truth: boxes arrive as fractions, masks at 550 px, crowds last with class -1."""
    images = []
    for i in (0, 1):
        truth, count = arrays[f"{prefix}target{i}"], len(arrays[f"{prefix}target{i}"])
        masks = np.unpackbits(arrays[f"{prefix}masks{i}_packed"], axis=1)[:, : 550 * 550].reshape(count, 550, 550)
        valid = np.arange(rows) < count
        crowd = valid & (np.arange(rows) >= count - arrays[f"{prefix}num_crowds"][i])
        boxes = np.zeros((rows, 4), np.float32)
        boxes[:count] = truth[:, :4] * np.float32(spec.image_sizes[0][0])
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
    """dbolya's name of one of our parameters."""
    modules = dict(jaxseg.weights.names.yolact.modules(config.model))
    module, leaf = path.rsplit("/", 1)
    return f"{modules[module]}.{'bias' if leaf == 'bias' else 'weight'}"
