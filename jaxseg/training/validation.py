"""The evaluation during training: validation losses, COCO's metrics, and pictures of detections."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxseg.config import Config, override
from jaxseg.data.sources.dataset import DataError, InstanceDataset
from jaxseg.data.stream.evaluation import evaluation_batches
from jaxseg.devices import to_global
from jaxseg.evaluation.coco_metrics import threshold_table
from jaxseg.evaluation.detect import DRAWN, DeviceDetector, prepare, select, start_batches, to_crops
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.pictures import write_picture
from jaxseg.training.metrics import losses_text
from jaxseg.training.optimizer import Tree
from jaxseg.training.step import make_loss_step
from jaxseg.visualization import draw

logger = logging.getLogger(__name__)

PICTURES = "pictures"


class Validation:
    """Evaluates the first `train.evaluate_images` validation images, or all of them if that is 0.

    Pictures are padded to the shapes of training, whatever `eval.canvas` says, so that few programs
    are compiled in the middle of a run.

    Every process of the run must call it at the same steps.
    """

    def __init__(self, config: Config, model: nn.Module, dataset: InstanceDataset, *, mesh: Mesh, run_folder: Path):
        self._config = override(config, {"eval.canvas": "shapes"})
        self._model, self._dataset, self._mesh = model, dataset, mesh
        self._folder = run_folder / PICTURES
        self._limit = min(config.train.evaluate_images or len(dataset), len(dataset))
        self._loss_step = make_loss_step(model, mesh)
        devices = mesh.local_mesh.size
        # The batch size of this process.
        self._batch_size = math.ceil(config.eval.batch_size / devices) * devices

    def __call__(self, step: int, variables: dict[str, Tree]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Evaluates, logs the tables, and writes `pictures/<step>_<image id>.jpg`.

        Args:
            step: the number of finished steps, for the names of the pictures.
            variables: the detector's variables, replicated over the mesh.

        Returns:
            The mean losses `val/loss/<name>`, `val/box/AP` and the other metrics of `evaluate`;
            and, in the first process, the drawn pictures by name, uint8 RGB.
        """
        losses = self._losses(variables)
        metrics = evaluate(self._config, variables, self._dataset, batch_size=self._batch_size, limit=self._limit, mesh=self._mesh)
        pictures = {}
        if jax.process_index() == 0:
            logger.info("validation at step %d, %d images: %s\n%s", step, self._limit, losses_text(losses), threshold_table(metrics))
            pictures = self._pictures(step, variables)
        return {f"val/{name}": value for name, value in (losses | metrics).items()}, pictures

    def _losses(self, variables: dict[str, Tree]) -> dict[str, float]:
        batches = evaluation_batches(
            self._dataset,
            self._model.input_spec,
            batch_size=self._batch_size,
            max_objects=self._config.data.max_objects,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            indices=range(self._limit),
        )
        sums: dict[str, float] = {}
        images = 0
        for batch in batches:
            losses, count = jax.device_get(self._loss_step(variables, to_global(batch, self._mesh)))
            images += int(count)
            for name, value in losses.items():
                # The losses of a batch without images are meaningless.
                sums[name] = sums.get(name, 0.0) + (float(value) * int(count) if count else 0.0)
        means = {f"loss/{name}": value / max(images, 1) for name, value in sums.items()}
        return means | {"loss/total": sum(means.values())}

    def _pictures(self, step: int, variables: dict[str, Tree]) -> dict[str, np.ndarray]:
        """Draws the detections in the first images, and writes the pictures."""
        detector = DeviceDetector(self._config, variables, self._mesh.local_devices)
        images: dict[int, np.ndarray] = {}
        drawn: dict[str, np.ndarray] = {}
        self._folder.mkdir(exist_ok=True)
        prepared = (prepare(index, image, detector.rule) for index, image in self._read(images))
        for batch in start_batches(detector, prepared, (self._batch_size,)):
            detections = jax.device_get(batch.detections)
            for row, (index, view) in enumerate(zip(batch.indices, batch.views, strict=True)):
                found = select(detections, row, DRAWN)
                boxes, masks = to_crops(found, view, detector.spec)
                crops = None if masks is None else list(masks)
                scores = found.scores if found.mask_scores is None else found.mask_scores
                picture = draw(images.pop(index), boxes, found.classes, self._dataset.class_names, masks=crops, scores=scores)
                name = str(self._dataset.image_ids[index])
                write_picture(self._folder / f"{step:07d}_{name}.jpg", picture)
                drawn[name] = picture
        return drawn

    def _read(self, images: dict[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the images to draw with their indices, and also keeps them in `images`.

        Images that cannot be read are left out.
        """
        for index in range(min(self._config.train.draw_images, len(self._dataset))):
            try:
                images[index] = self._dataset[index].image
            except DataError as error:
                logger.warning("Image %d is not drawn: %s", index, error)
            else:
                yield index, images[index]
