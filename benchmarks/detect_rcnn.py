"""Times Mask R-CNN from pictures in memory to boxes and masks at their size.

    python benchmarks/detect_rcnn.py                    # needs torch
    python benchmarks/detect_rcnn.py --batch_sizes 1 4 --repetitions 20

On a CPU the other side is torch; on a GPU jaxseg is timed with the kernels and without. The model
has a ResNet-50 with a feature pyramid, 91 classes and torchvision's conventions. Pictures of
640 x 480 are resized to an input of 800 x 1088, in float32 on a CPU and in bfloat16 on a GPU. All
sides have the same random weights and take turns. The results are medians and the range between the
10th and the 90th percentile, in milliseconds per batch. The end of each phase is waited for:

- preparation: from the picture to the network's input;
- network: the backbone, the pyramid, and the head of the region proposal network;
- proposals: the selection of the best anchors of each level, decoding, non-maximum suppression;
- boxes: RoIAlign, the box head, non-maximum suppression;
- masks: RoIAlign and the mask head;
- paste: boxes and binary masks at the size of the picture;
- total: all phases as a user runs them, measured separately. jaxseg then runs one program, into
  which the variables are compiled on a CPU.

The torch side is benchmarks/rcnn_in_torch.py. It replaces torchvision's compiled operators,
non-maximum suppression and RoIAlign, by vectorised torch. It runs on the CPU only; on a GPU it only
makes the weights. The script also compares the detections of both sides.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import torch
from detect import PICTURE_SIZE, Side, Stopwatch, measure, our_sides, program, table
from rcnn_in_torch import MaskRcnn, calibrated
from timing import describe_device

import jaxseg
from jaxseg.config import Config, parse_config_flags
from jaxseg.data.views.from_spec import view_rule
from jaxseg.evaluation.detect import Selection, pad_batch, prepare, select, to_picture
from jaxseg.models.rcnn.roi_heads import kept_regions
from jaxseg.models.rcnn.rpn import propose
from jaxseg.predictor import Prediction, Predictor
from jaxseg.structures import Detections

CONFIG = "configs/mask_rcnn_r50_fpn_torchvision.py"
INPUT_SHAPE = (800, 1088)
AFTER_THE_NETWORK = ("proposals", "boxes", "masks", "paste")


def ours(config: Config, variables: Any, predictor: Predictor) -> Side:
    """Makes the side of jaxseg, with one program per phase, and the predictor for the total."""
    model: Any = jaxseg.build_model(config)
    c, spec = config.model, model.input_spec
    rule = view_rule(spec)

    def run_network(module: Any, images: jax.Array, sizes: jax.Array) -> Any:
        levels = module.pyramid(images, sizes, train=False)
        return levels, module.rpn(levels)

    def run_boxes(module: Any, levels: Any, proposals: Any, sizes: jax.Array) -> Any:
        logits, deltas, _ = module.predict_boxes(levels, proposals.boxes, train=False)
        keep = functools.partial(kept_regions, config=c.roi, conventions=c.conventions, implementation=c.implementation)
        return jax.vmap(keep)(logits, deltas, proposals, sizes)

    def run_masks(module: Any, levels: Any, boxes: jax.Array, classes: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(module.predict_masks(levels, boxes, classes, train=False))

    network, boxes, masks = (
        program(functools.partial(model.apply, method=method), variables) for method in (run_network, run_boxes, run_masks)
    )
    levels = [jnp.zeros((1, *(-(-side // stride) for side in INPUT_SHAPE), 1)) for stride in model.strides]
    anchors = model.anchors(levels, jnp.zeros((1, *INPUT_SHAPE, 3)))
    rules = {"config": c.rpn, "conventions": c.conventions, "implementation": c.implementation}
    proposals = jax.jit(lambda outputs, sizes: propose(outputs, anchors, sizes, **rules, train=False))

    def run(pictures: list[np.ndarray]) -> tuple[dict[str, float], int]:
        watch = Stopwatch()
        prepared = [prepare(i, picture, rule) for i, picture in enumerate(pictures)]
        images, sizes = pad_batch(prepared, len(pictures))
        watch.split("preparation")
        levels, outputs = jax.block_until_ready(network(images, sizes))
        watch.split("network")
        regions = jax.block_until_ready(proposals(outputs, sizes))
        watch.split("proposals")
        found, kept = jax.block_until_ready(boxes(levels, regions, sizes))
        watch.split("boxes")
        soft = jax.block_until_ready(masks(levels, found, kept.classes))
        watch.split("masks")
        detections = jax.device_get(Detections(found, kept.scores, kept.classes, kept.valid, soft))
        for picture in prepared:
            to_picture(select(detections, picture.index, Selection()), picture.view, spec)
        watch.split("paste")
        predictions = predictor(pictures)
        watch.split("total")
        return watch.milliseconds, sum(len(prediction) for prediction in predictions)

    return run


def peer(model: MaskRcnn) -> Side:
    """Makes the side of the same network in torch."""

    @torch.inference_mode()
    def run(pictures: list[np.ndarray]) -> tuple[dict[str, float], int]:
        watch = Stopwatch()
        images, sizes = model.prepare(pictures)
        watch.split("preparation")
        levels, logits, deltas = model.network(images)
        watch.split("network")
        proposals = model.propose(images, sizes, logits, deltas)
        watch.split("proposals")
        found = model.detect(levels, proposals, sizes)
        watch.split("boxes")
        masks = model.predict_masks(levels, found)
        watch.split("masks")
        model.paste(pictures, sizes, found, masks)
        watch.split("paste")
        results = model(pictures)
        watch.split("total")
        return watch.milliseconds, sum(len(result["scores"]) for result in results)

    return run


def make_pictures(count: int) -> list[np.ndarray]:
    """Makes pictures of coloured clouds of several sizes."""
    rng = np.random.default_rng(0)

    def clouds() -> np.ndarray:
        layers = [
            cv2.resize(rng.random((h, h * 4 // 3, 3), np.float32), PICTURE_SIZE[::-1], interpolation=cv2.INTER_CUBIC) for h in (3, 12, 48)
        ]
        return np.clip(255 * sum(layers) / len(layers), 0, 255).astype(np.uint8)

    return [clouds() for _ in range(count)]


def compare(predictions: Sequence[Prediction], results: Sequence[dict[str, np.ndarray]]) -> str:
    """Describes how many objects of ours the peer also detects, and how much these differ.

    Objects are the same if their classes are equal and their corners differ by at most half a
    pixel.
    """
    found, scores, corners, pixels = 0, [0.0], [0.0], [0.0]
    for prediction, result in zip(predictions, results, strict=True):
        assert prediction.masks is not None
        for box, mask, score, number in zip(prediction.boxes, prediction.masks, prediction.scores, prediction.classes, strict=True):
            distances = np.where(result["classes"] == number, np.abs(result["boxes"] - box).max(1), np.inf)
            nearest = int(distances.argmin())
            if distances[nearest] < 0.5:
                found += 1
                corners.append(float(distances[nearest]))
                scores.append(abs(float(result["scores"][nearest] - score)))
                pixels.append(float((result["masks"][nearest] != mask).sum()))
    total = sum(len(prediction) for prediction in predictions)
    return (
        f"of {total} objects of ours the peer finds {found}; at most {max(corners):.4f} px, {max(scores):.1e} in score and "
        f"{max(pixels):.0f} pixels of a mask apart"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--repetitions", type=int, default=10)
    overrides, others = parse_config_flags(sys.argv[1:])
    options = parser.parse_args(others)
    dtype = "float32" if jax.default_backend() == "cpu" else "auto"
    config = jaxseg.load_config(CONFIG, {"model.input.shapes": (INPUT_SHAPE,), "model.dtype": dtype, **overrides})
    pictures = make_pictures(max(options.batch_sizes))
    model = calibrated(MaskRcnn(config.model.num_classes + 1), pictures[0])
    variables = jaxseg.load_weights({name: value.numpy() for name, value in model.state_dict().items()}, config)
    predictors: list[Predictor] = []

    def make(config: Config) -> Side:
        predictor = Predictor(config, variables, batch_size=1 << (max(options.batch_sizes) - 1).bit_length())
        predictors.append(predictor)
        return ours(config, variables, predictor)

    sides = our_sides(config, make)
    print(f"{config.name} in {INPUT_SHAPE[0]} x {INPUT_SHAPE[1]}, pictures of 640 x 480, on {describe_device()}")
    first, last = predictors[0], predictors[-1]
    if first is not last:
        print(f"with the kernels and, as the peer, without: {compare(first(pictures), [vars(found) for found in last(pictures)])}")
    else:
        print(f"peer: torch modules with {torch.get_num_threads()} threads")
        print("its NMS and RoIAlign are vectorised torch, where torchvision has compiled operators")
        with torch.inference_mode():
            print(compare(first(pictures), model(pictures)))
        sides["torch"] = peer(model)
    for batch_size in options.batch_sizes:
        times = measure(sides, pictures, batch_size, options.repetitions)
        print(f"\nbatch of {batch_size}, {options.repetitions} repetitions\n{table(times, AFTER_THE_NETWORK)}\n")


if __name__ == "__main__":
    main()
