"""The goldens of the four R-CNN originals, converted to our conventions.

They are torchvision, detectron2, mmdetection and maskrcnn-benchmark.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from goldens import Golden, input_picture, load_arrays
from pycocotools import mask as coco_mask
from rebuilt_weights import rcnn_weights

import jaxseg
from jaxseg.config import Config, override
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.stream.targets import to_targets
from jaxseg.data.views.from_spec import view_rule
from jaxseg.data.views.placed import PlacedView
from jaxseg.structures import Batch, Targets

# The configuration for each run, with the settings that differ in the run.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    # This run does not use the epsilon of 0 that is the rule for the published weights.
    "tv_fasterrcnn": ("mask_rcnn_r50_fpn_torchvision", {"model.masks": False, "model.backbone.norm_epsilon": 1e-5}),
    "tv_maskrcnn": ("mask_rcnn_r50_fpn_torchvision", {}),
    "d2_maskrcnn": ("mask_rcnn_r50_fpn_3x_detectron2", {}),
    "mmdet_fasterrcnn": ("faster_rcnn_r50_fpn_1x", {}),
    "mmdet_maskrcnn": ("mask_rcnn_r50_fpn_1x_mmdetection", {}),
    "mrb_maskrcnn": ("mask_rcnn_r50_fpn_1x", {}),
}
LOSSES = {
    "rpn_class": ("loss_objectness", "loss_rpn_cls"),
    "rpn_box": ("loss_rpn_box_reg", "loss_rpn_loc", "loss_rpn_bbox"),
    "class": ("loss_classifier", "loss_cls"),
    "box": ("loss_box_reg", "loss_bbox"),
    "mask": ("loss_mask",),
}


@dataclasses.dataclass
class RcnnRun:
    """One golden with its configuration, model and weights."""

    name: str
    golden: Golden
    config: Config
    model: jaxseg.models.Detector
    state_dict: dict[str, np.ndarray]
    variables: dict[str, Any]

    @property
    def first_class(self) -> int:
        """The number of our class 0 in the golden."""
        return 1 if self.name.startswith(("tv", "mrb")) else 0

    def pictures(self) -> list[np.ndarray]:
        return [input_picture(f"two_stage{i}") for i in (0, 1)]

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns both pictures in inputs of one size, RGB, and their sizes within them."""
        _, _, height, width = self.golden["net_shape"]
        images, sizes = np.zeros((2, height, width, 3), np.float32), np.zeros((2, 2), np.int32)
        for i, picture in enumerate(self.pictures()):
            # Only torchvision's model resizes pictures itself.
            if self.name.startswith("tv"):
                view = view_rule(self.model.input_spec).whole(picture.shape[:2])
                picture = view.evaluation_image(picture)[: view.image_size[0], : view.image_size[1]]
            sizes[i] = picture.shape[:2]
            images[i, : sizes[i, 0], : sizes[i, 1]] = picture
        return images, sizes

    def batch(self, rows: int = 8) -> Batch:
        """Makes a batch of both pictures with their ground truth."""
        images, sizes = self.inputs()
        targets = [self._targets(i, tuple(sizes[i].tolist()), images.shape[1:3], rows) for i in (0, 1)]
        return Batch(
            images=images,
            image_sizes=sizes,
            indices=np.arange(2, dtype=np.int32),
            valid=np.ones(2, bool),
            targets=jax.tree.map(lambda *both: np.stack(both), *targets),
        )

    def _targets(self, image: int, size: tuple[int, int], input_size: tuple[int, int], rows: int) -> Targets:
        """Makes the targets of a picture as the data pipeline does, with the golden's own boxes."""
        picture, spec = self.pictures()[image], self.model.input_spec
        height, width = picture.shape[:2]
        classes = self._first("gt_labels", "gt_labels0based", "gt_labels1based", image=image) - self.first_class
        truth, count = self.golden[f"gt_boxes{image}"], len(classes)
        sample = Sample(
            image=picture,
            boxes=truth + np.float32([0, 0, spec.pixel_offset, spec.pixel_offset]),
            classes=classes.astype(np.int32),
            crowd=np.zeros(count, bool),
            masks=self.bitmaps(image),
            index=image,
            polygons=[[points] for points in self.polygons(image)],
        )
        targets = to_targets(sample, PlacedView(spec, (height, width), input_size, size), spec, rows)
        boxes = np.zeros((rows, 4), np.float32)
        boxes[:count] = truth * np.float32([size[1] / width, size[0] / height] * 2)
        np.testing.assert_allclose(targets.boxes, boxes, atol=1e-3)
        return dataclasses.replace(targets, boxes=boxes)

    def polygons(self, image: int) -> list[list[float]]:
        """Returns the outline of each object, in pixels of the picture."""
        return json.loads(str(self.golden[f"gt_polys{image}"]))

    def bitmaps(self, image: int) -> np.ndarray:
        """Returns the mask of each object, at the picture's size."""
        height, width = self.pictures()[image].shape[:2]
        return np.stack(
            [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points], height, width))) for points in self.polygons(image)]
        )

    def detections(self, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the golden's boxes in pixels of the input, its scores, and our classes."""
        golden = self.golden
        # If the picture has another size, the boxes are taken before their conversion to it.
        boxes = self._first("raw_boxes", "roi_boxes", "det_boxes", image=image)
        if self.name.startswith("mmdet"):
            scores, boxes = boxes[:, 4], boxes[:, :4] * golden[f"scale_factor{image}"]
        else:
            scores = self._first("raw_scores", "det_scores", image=image)
        return boxes, scores, self._first("raw_classes", "det_labels", image=image) - self.first_class

    def masks_name(self, image: int) -> str:
        """Returns the name of the masks: 28 x 28 probabilities, or mmdetection's in the picture."""
        names = (f"mask_prob28_{image}", f"raw_masks28_{image}", f"det_masks28_{image}", f"det_masks{image}_packed")
        return next(name for name in names if name in self.golden)

    def _first(self, *names: str, image: int) -> np.ndarray:
        return next(self.golden[f"{name}{image}"] for name in names if f"{name}{image}" in self.golden)

    def losses(self) -> dict[str, float]:
        """Returns the golden's losses by our names."""
        return {
            ours: float(self.golden[f"loss/{their}"]) for ours, names in LOSSES.items() for their in names if f"loss/{their}" in self.golden
        }


def load_rcnn(golden: Path, name: str, **overrides: Any) -> RcnnRun:
    arrays = load_arrays(golden / "two_stage" / f"{name}.npz")
    config_name, changes = RUNS[name]
    config = jaxseg.load_config(f"configs/{config_name}.py", {"model.dtype": "float32", **changes})
    if name.startswith("tv"):
        height, width = (int(side) for side in arrays["net_shape"][2:])
        config = override(
            config, {"model.input.shorter_side": (320,), "model.input.longer_side": 448, "model.input.shapes": ((height, width),)}
        )
    config = override(config, overrides)
    state_dict = rcnn_weights(name, arrays)
    return RcnnRun(name, arrays, config, jaxseg.build_model(config), state_dict, jaxseg.load_weights(state_dict, config))


def first_come(key: jax.Array, shape: tuple[int, ...], *_: Any) -> jax.Array:
    """A replacement for `jax.random.uniform`, with which the first candidates are sampled.

    The originals did the same when their permutation was replaced by the identity.
    """
    del key
    return jnp.broadcast_to(1 - jnp.arange(shape[-1], dtype=jnp.float32) / (shape[-1] + 1), shape)


def strided(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Selects every n-th entry of each axis of our `[B, H, W, C]`, as in the golden.

    The golden's arrays are `[B, C, H, W]`.
    """
    array = np.moveaxis(np.asarray(array), -1, 1)
    steps = [-(-full // kept) for full, kept in zip(array.shape, like.shape, strict=True)]
    return array[tuple(slice(None, None, step) for step in steps)]
