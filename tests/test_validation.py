"""The validation of a run, for a detector with two input shapes, with and without masks."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import white_boxes
from white_boxes import CONFIG, VARIABLES, PaddedDetector

from jaxseg.config import override
from jaxseg.data.sources.from_config import open_dataset
from jaxseg.devices import make_mesh
from jaxseg.training.validation import Validation


class LearningDetector(PaddedDetector):
    """A detector with a loss, which is the sum of the sides of the boxes of each image."""

    def apply(self, variables, batch, *arguments, method, **options):
        if method == "detect":
            return super().apply(variables, batch, *arguments, method=method)
        sides = (batch.targets.boxes[..., 2:] - batch.targets.boxes[..., :2]).sum(-1)
        count = jnp.maximum(batch.valid.sum(), 1)
        return {"box": (sides.sum(-1) * batch.valid).sum() / count}


@pytest.mark.parametrize("mask_frame", ["box", None])
def test_validation_in_inputs_of_two_shapes(use_detector, tmp_path, caplog, mask_frame):
    white_boxes.write_dataset(tmp_path / "data", 7)
    model = use_detector(LearningDetector(mask_frame))
    config = override(CONFIG, {"data.root": str(tmp_path / "data"), "train.draw_images": 5, "eval.batch_size": 2})
    dataset = open_dataset(config, "val")
    with caplog.at_level("INFO", logger="jaxseg"):
        validation = Validation(config, model, dataset, mesh=make_mesh(), run_folder=tmp_path)
        metrics, pictures = validation(3, jax.tree.map(jnp.asarray, VARIABLES))
    assert metrics["val/box/AP"] == pytest.approx(1.0)
    assert ("val/mask/AP" in metrics) == (mask_frame is not None)
    # Boxes are 16 x 18 at a scale of 1. The scale is 1/2 for pictures of twice the width and more
    # height. One image has no box.
    halved = [image.shape == (64, 64, 3) or image.shape == (96, 64, 3) for image in (dataset[i].image for i in range(7))]
    assert sum(halved) == 2
    assert metrics["val/loss/box"] == pytest.approx((5 * 34 + 2 * 17) / 8)
    assert sorted(pictures) == [str(100 + i) for i in range(5)]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"0000003_{100 + i}.jpg" for i in range(5)}
    for name, picture in pictures.items():
        height, width, _ = dataset[int(name) - 100].image.shape
        assert picture.shape[0] / picture.shape[1] == height / width
        inside = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)[10:20, 10:14]
        colored = np.ptp(inside.astype(int), axis=2).mean() > 10
        assert colored == (mask_frame is not None), "masks must be drawn in colour on grey"
