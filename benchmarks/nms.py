"""Times exact greedy NMS on this machine, and OpenCV's compiled routine and torch.

    python benchmarks/nms.py

If torch is installed, it processes the boxes in a loop. All sides get the same boxes, take turns,
and have to keep the same boxes. Boxes are float32 at whole pixels, because OpenCV computes overlaps
in float64. The times are the processor times of all threads, so that a busy machine has little
effect, for a call whose inputs are in memory. Ratios are the times of the other sides over ours.
"""

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops.nms import class_nms, exact_nms

PROPOSALS, PROPOSAL_IOU = 2000, 0.7
REGIONS, CLASSES, SCORE_THRESHOLD, DETECTION_IOU, DETECTIONS = 1000, 80, 0.05, 0.5, 100


@dataclasses.dataclass
class Case:
    """The same work for several sides.

    Attributes:
        name: the name in the output.
        sides: for each side, the function that does the work.
        rows: for each side, the function that converts its result to the sorted kept rows.
    """

    name: str
    sides: dict[str, Callable[[], Any]]
    rows: dict[str, Callable[[Any], list[int]]]


def proposals(rng: np.random.Generator, count: int, objects: int, noise: float) -> np.ndarray:
    """Makes boxes at whole pixels of an input of 800 x 1333, with many around each object.

    Args:
        rng: the source of randomness.
        count: the number of boxes.
        objects: the number of objects.
        noise: the standard deviation of centres and sizes in pixels.

    Returns:
        `x1, y1, x2, y2`, float32 `[count, 4]`.
    """
    center, size = rng.random((objects, 2)) * [1333, 800], rng.random((objects, 2)) * 300 + 20
    chosen = rng.integers(objects, size=count)
    center, size = (x[chosen] + rng.normal(size=(count, 2)) * noise for x in (center, size))
    size = np.maximum(size, 4)
    return np.round(np.concatenate([center - size / 2, center + size / 2], 1)).astype(np.float32)


def distinct_scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Makes scores of which no two are equal, because the sides break ties differently."""
    count = int(np.prod(shape))
    return ((rng.permutation(count) + 1) / (count + 1)).astype(np.float32).reshape(shape)


def width_height(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float64)


def torch_nms(boxes: Any, scores: Any, iou_threshold: float) -> list[int]:
    """Suppresses boxes in a loop, in which a box is compared with all remaining boxes at once."""
    order = scores.argsort(descending=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(int(first))
        low, high = boxes[order, :2].maximum(boxes[first, :2]), boxes[order, 2:].minimum(boxes[first, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = order[shared / (area[order] + area[first] - shared) <= iou_threshold]
    return kept


def of_one_list(name: str, boxes: np.ndarray, scores: np.ndarray, torch: Any) -> Case:
    """Makes the case of the proposals of one level of one image."""
    return of_lists(name, boxes[None], scores[None], torch)


def of_lists(name: str, boxes: np.ndarray, scores: np.ndarray, torch: Any) -> Case:
    """Makes the case of the proposals of several levels and images.

    jaxseg has one program for all lists, and the others process one list after the other.
    """
    count = scores.shape[1]
    ours = jax.jit(jax.vmap(lambda b, s: exact_nms(b, s, s > 0, iou_threshold=PROPOSAL_IOU)))
    arguments = jnp.asarray(boxes), jnp.asarray(scores)
    corners = [width_height(b) for b in boxes]

    def offset(lists: list) -> list[int]:
        return sorted(i * count + int(row) for i, rows in enumerate(lists) for row in rows)

    sides: dict[str, Callable[[], Any]] = {
        "jaxseg": lambda: jax.block_until_ready(ours(*arguments)),
        "OpenCV": lambda: [cv2.dnn.NMSBoxes(b, s, 0.0, PROPOSAL_IOU) for b, s in zip(corners, scores, strict=True)],  # type: ignore[arg-type]
    }
    rows: dict[str, Callable[[Any], list[int]]] = {"jaxseg": lambda keep: np.flatnonzero(keep).tolist(), "OpenCV": offset}
    if torch:
        tensors = [(torch.from_numpy(b), torch.from_numpy(s)) for b, s in zip(boxes, scores, strict=True)]
        sides["torch"] = lambda: [torch_nms(*pair, PROPOSAL_IOU) for pair in tensors]
        rows["torch"] = offset
    return Case(name, sides, rows)


def of_classes(name: str, boxes: np.ndarray, scores: np.ndarray, torch: Any) -> Case:
    """Makes the case of the detections of one image.

    Its steps are the threshold, suppression within classes, and the selection of the best.
    """
    ours = jax.jit(partial(class_nms, score_threshold=SCORE_THRESHOLD, iou_threshold=DETECTION_IOU, max_detections=DETECTIONS))
    arguments = jnp.asarray(boxes), jnp.asarray(scores)
    corners = width_height(boxes.reshape(-1, 4)).reshape(boxes.shape)

    def by_class(suppress: Callable[[np.ndarray, int], Any]) -> list[int]:
        found = []
        for label in range(CLASSES):
            candidates = np.flatnonzero(scores[:, label] > SCORE_THRESHOLD)
            if len(candidates):
                found.append(candidates[suppress(candidates, label)] * CLASSES + label)
        flat = np.concatenate(found)
        return flat[np.argsort(-scores.reshape(-1)[flat])[:DETECTIONS]].tolist()

    sides: dict[str, Callable[[], Any]] = {
        "jaxseg": lambda: jax.block_until_ready(ours(*arguments)),
        "OpenCV": lambda: by_class(lambda rows, c: cv2.dnn.NMSBoxes(corners[rows, c], scores[rows, c], 0.0, DETECTION_IOU)),
    }
    rows: dict[str, Callable[[Any], list[int]]] = {
        "jaxseg": lambda kept: sorted(np.asarray(kept.indices * CLASSES + kept.classes)[np.asarray(kept.valid)].tolist()),
        "OpenCV": sorted,
    }
    if torch:
        tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
        sides["torch"] = lambda: by_class(lambda rows, c: torch_nms(tensors[0][rows, c], tensors[1][rows, c], DETECTION_IOU))
        rows["torch"] = sorted
    return Case(name, sides, rows)


def cases(rng: np.random.Generator, torch: Any) -> list[Case]:
    crowded = [proposals(rng, PROPOSALS, 60, 12.0) for _ in range(10)]
    scattered = proposals(rng, PROPOSALS, PROPOSALS, 0.0)
    regions = np.stack([proposals(rng, REGIONS, 20, 8.0) for _ in range(CLASSES)], 1)
    # Either few pairs of a region and a class pass the threshold, as after training, or all do.
    likely = distinct_scores(rng, REGIONS, CLASSES)
    unlikely = np.where(rng.random((REGIONS, CLASSES)) < 0.01, likely, likely * SCORE_THRESHOLD).astype(np.float32)
    return [
        of_one_list("2000 boxes around 60 objects", crowded[0], distinct_scores(rng, PROPOSALS), torch),
        of_one_list("2000 boxes all over", scattered, distinct_scores(rng, PROPOSALS), torch),
        of_lists("2 images, 5 levels, 2000 each", np.stack(crowded), distinct_scores(rng, 10, PROPOSALS), torch),
        of_classes("1000 x 80 boxes, 1 % likely", regions, unlikely, torch),
        of_classes("1000 x 80 boxes, all likely", regions, likely + np.float32(SCORE_THRESHOLD), torch),
    ]


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Measures the milliseconds of each side in each round, after a check that results agree."""
    kept = {name: case.rows[name](run()) for name, run in case.sides.items()}
    for name, rows in kept.items():
        if rows != kept["jaxseg"]:
            raise SystemExit(f"{case.name}: {name} keeps {len(rows)} boxes, jaxseg {len(kept['jaxseg'])}, and not the same ones.")
    times: dict[str, list[float]] = {name: [] for name in case.sides}
    for _ in range(rounds):
        for name, run in case.sides.items():
            started = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - started))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch: Any = None
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
    for case in cases(np.random.default_rng(arguments.seed), torch):
        times = measure(case, arguments.rounds)
        print(case.name)
        for name, values in times.items():
            line = f"  {name:8s} {statistics.median(values):9.2f} ms (median of {len(values)}, {min(values):.2f} to {max(values):.2f})"
            if name != "jaxseg":
                ratios = [other / own for other, own in zip(values, times["jaxseg"], strict=True)]
                line += f"   ratio {statistics.median(ratios):7.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(line)


if __name__ == "__main__":
    main()
