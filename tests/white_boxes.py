"""Detectors of white rectangles on black, with pictures as COCO files, whose AP is known.

As a script it evaluates in its own process, for the test that needs two:
`python white_boxes.py DATASET RESULT`, with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID in the environment.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.config import Config, override
from jaxseg.models import YolactConfig
from jaxseg.structures import Detections, InputSpec, Resize

SIZE = 32
CATEGORY_IDS = (3, 8)
CLASS_NAMES = ("dim", "bright")
CONFIG = override(
    Config(model=YolactConfig()),
    {
        "name": "white_boxes",
        "model.num_classes": 2,
        "model.image_size": SIZE,
        "data.class_names": CLASS_NAMES,
        "data.category_ids": CATEGORY_IDS,
        "eval.batch_size": 4,
    },
)


class WhiteBoxDetector:
    """A detector of the smallest box around all pixels above 50.

    The class is 0 up to a brightness of 150, and 1 above. There are three rows: the box, its left
    half with a lower score, and padding. Scores are multiplied by the only variable.
    """

    input_spec = InputSpec(input_sizes=((SIZE, SIZE),), mask_size=(SIZE, SIZE), semantic_size=(SIZE, SIZE), num_classes=2)

    def __init__(self):
        self.traces = 0

    def apply(self, variables, images, image_sizes, *, method):
        assert method == "detect"
        self.traces += 1
        return jax.vmap(lambda image: self._one(image, variables["params"]["score"]))(images)

    @staticmethod
    def _one(image, score):
        grey = image.astype(jnp.float32).mean(-1)
        seen = grey > 50
        rows, columns = seen.any(1), seen.any(0)
        top, bottom = jnp.argmax(rows), SIZE - jnp.argmax(rows[::-1])
        left, right = jnp.argmax(columns), SIZE - jnp.argmax(columns[::-1])
        boxes = jnp.array([[left, top, right, bottom], [left, top, (left + right) / 2, bottom], [0, 0, 0, 0]], jnp.float32)
        masks = seen[None] * (jnp.arange(SIZE) < boxes[:, 2, None])[:, None, :]
        number = (grey.max() > 150).astype(jnp.int32)
        found = seen.any()
        return Detections(
            boxes=boxes,
            scores=jnp.array([0.9, 0.3, 0.0]) * score,
            classes=jnp.stack([number, number, 0]),
            valid=jnp.array([True, True, False]) & found,
            masks=masks.astype(jnp.float32),
        )


class PaddedDetector:
    """The same detector for pictures that keep their proportions, with inputs of two sizes.

    It ignores the padding of its input. There are three rows: the box, the same box with a lower
    score and a mask of its left half, and padding.

    Args:
        mask_frame: the region that masks cover, "image", "box" or "integer_box"; None means that
            there are no masks.
        pixel_offset: 1 if boxes end in their last pixel.
    """

    def __init__(self, mask_frame, pixel_offset=0.0):
        self.input_spec = InputSpec(
            input_sizes=((SIZE, 3 * SIZE), (3 * SIZE, SIZE)),
            mask_size={None: None, "image": (SIZE, 3 * SIZE)}.get(mask_frame, (28, 28)),
            semantic_size=None,
            num_classes=2,
            resize=Resize("opencv", (SIZE // 2, SIZE), 3 * SIZE),
            mask_frame=mask_frame or "box",
            pixel_offset=pixel_offset,
        )
        self.has_masks = mask_frame is not None
        self.traces = 0

    def apply(self, variables, images, image_sizes, *, method):
        assert method == "detect"
        assert images.shape[1:3] in self.input_spec.input_sizes
        self.traces += 1
        return jax.vmap(lambda image, size: self._one(image, size, variables["params"]["score"]))(images, image_sizes)

    def _one(self, image, size, score):
        height, width, _ = image.shape
        inside = (jnp.arange(height) < size[0])[:, None] & (jnp.arange(width) < size[1])
        grey = image.mean(-1) * inside
        seen = grey > 50
        rows, columns = seen.any(1), seen.any(0)
        top, bottom = jnp.argmax(rows), height - jnp.argmax(rows[::-1])
        left, right = jnp.argmax(columns), width - jnp.argmax(columns[::-1])
        offset = self.input_spec.pixel_offset
        box = jnp.array([left, top, right - offset, bottom - offset], jnp.float32)
        if self.input_spec.mask_frame == "image":
            whole, half = seen, seen & (jnp.arange(width) < (left + right) / 2)
        else:
            whole = jnp.ones((28, 28), bool)
            half = whole & (jnp.arange(28) < 14)
        number = (grey.max() > 150).astype(jnp.int32)
        return Detections(
            boxes=jnp.stack([box, box, 0 * box]),
            scores=jnp.array([0.9, 0.3, 0.0]) * score,
            classes=jnp.stack([number, number, 0]),
            valid=jnp.array([True, True, False]) & seen.any(),
            masks=jnp.stack([whole, half, whole]).astype(jnp.float32) if self.has_masks else None,
        )


VARIABLES = {"params": {"score": np.float32(1.0)}}


def picture(height, width, box, brightness):
    """Makes a black picture with one rectangle."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = brightness
    return image


def write_dataset(root: Path, count: int) -> None:
    """Writes `count` validation pictures of several sizes as COCO files.

    Each has a rectangle, and one more picture at the end has none.
    """
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for i in range(count):
        height, width = SIZE * (1 + i % 3), SIZE * (1 + i % 2)
        # At every size, the edges are between the cells of the network's input.
        x, y, w, h = 8 * (i % 2), 6, 16, 18
        brightness = 255 if i % 3 else 100
        name = f"{i:03}.png"
        cv2.imwrite(str(root / "val2017" / name), picture(height, width, (x, y, x + w, y + h), brightness))
        images.append({"id": 100 + i, "file_name": name, "height": height, "width": width})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": 1 + i,
                "image_id": 100 + i,
                "category_id": CATEGORY_IDS[brightness > 150],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [polygon],
            }
        )
    cv2.imwrite(str(root / "val2017" / "black.png"), np.zeros((SIZE, SIZE, 3), np.uint8))
    images.append({"id": 99, "file_name": "black.png", "height": SIZE, "width": SIZE})
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(data))


def main(root: str, result: str) -> None:
    from jaxseg.data.sources.from_config import open_dataset
    from jaxseg.devices import initialize_distributed
    from jaxseg.evaluation import detect
    from jaxseg.evaluation.evaluator import evaluate

    initialize_distributed()
    with mock.patch.object(detect, "build_model", return_value=WhiteBoxDetector()):
        config = override(CONFIG, {"data.root": root})
        metrics = evaluate(config, VARIABLES, open_dataset(config, "val"), batch_size=2)
    Path(result).write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
