"""Measures how fast one core makes training batches, and how large these are.

If a clone of dbolya/yolact is given, its loader is measured, too.

    python benchmarks/input_pipeline.py --root data/coco
    python benchmarks/input_pipeline.py --root data/coco --config configs/mask_rcnn_r50_fpn_1x.py
    python benchmarks/input_pipeline.py --root data/coco --peer ../yolact     # needs torch

Batches have eight images and are those of training with the configuration, or with YOLACT at 550
pixels if none is given. Both sides read, decode, augment and stack the same images, in one process
with one thread, and take turns. Seconds are those of processor time, so that a busy machine has
little effect. In the original, the training step resizes masks to the resolutions of the losses;
here this is part of the measured work.
"""

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from jaxseg.config import Config, load_config, override
from jaxseg.data.sources.from_config import open_dataset
from jaxseg.data.stream.training import TrainingLoader
from jaxseg.models import build_model

BATCH_SIZE = 8


def ours(config: Config, seed: int) -> tuple[Callable[[], int], float]:
    """Returns a function that reads and counts all training images, and the bytes of an image."""
    spec = build_model(config).input_spec
    loader = TrainingLoader(open_dataset(config, "train"), spec, config.data.augment, config.data.max_objects)
    rng = np.random.default_rng(seed)

    def read() -> int:
        for images in loader.groups.members:
            order = rng.permutation(images)
            for start in range(0, len(order), BATCH_SIZE):
                indices = order[start : start + BATCH_SIZE]
                loader(np.stack([indices, rng.integers(2**62, size=len(indices))], axis=1))
        return len(loader.dataset)

    arrays = loader(np.zeros((BATCH_SIZE, 2), np.int64))["arrays"]
    return read, sum(array.nbytes for array in jax.tree.leaves(arrays)) / BATCH_SIZE


def original(checkout: Path, config: Config, seed: int) -> Callable[[], int]:
    """Returns such a function for the original's loader, adapted to recent versions of NumPy."""
    import torch

    torch.set_num_threads(1)
    # NumPy has removed these names; the original imports torchvision, but does not use it here.
    vars(np).update(int=int, float=float)
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))
    sys.modules["torchvision"].transforms = types.ModuleType("torchvision.transforms")  # type: ignore[attr-defined]
    sys.path.insert(0, str(checkout))
    from data import COCODetection, detection_collate  # type: ignore[import-not-found]
    from utils import augmentations  # type: ignore[import-not-found]

    augmentations.random = _RaggedChoice()
    root = Path(config.data.root)
    dataset = COCODetection(
        str(root / config.data.train_images), str(root / config.data.train_annotations), augmentations.SSDAugmentation()
    )
    np.random.seed(seed)  # noqa: NPY002 (what the original draws from)

    def read() -> int:
        order = np.random.default_rng(seed).permutation(len(dataset))
        for start in range(0, len(order), BATCH_SIZE):
            detection_collate([dataset[i] for i in order[start : start + BATCH_SIZE]])
        return len(order)

    return read


class _RaggedChoice:
    """`numpy.random` with the earlier `choice`, which took a tuple of values of several types."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np.random, name)

    def choice(self, options: Any) -> Any:
        return options[np.random.randint(len(options))]  # noqa: NPY002


def measure(readers: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Measures the images per second of each reader in each round, after a first turn of each."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        for name, read in readers.items():
            started = time.process_time()
            count = read()
            if turn > 0:
                rates[name].append(count / (time.process_time() - started))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a folder in COCO's layout")
    parser.add_argument("--config", default="configs/yolact_r101.py", help="whose input")
    parser.add_argument("--peer", type=Path, help="a checkout of dbolya/yolact")
    parser.add_argument("--rounds", type=int, default=5, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    config = override(load_config(arguments.config), {"data.root": arguments.root})
    if arguments.peer and config.model.kind != "yolact":
        parser.error(f"--peer makes YOLACT's input, but {arguments.config} is of {config.model.kind}")
    read, size = ours(config, arguments.seed)
    readers = {"jaxseg": read}
    if arguments.peer:
        readers["original"] = original(arguments.peer, config, arguments.seed)
    rates = measure(readers, arguments.rounds)
    for name, values in rates.items():
        spread = f"median of {len(values)}, {min(values):.1f} to {max(values):.1f}"
        print(f"{name:10s} {statistics.median(values):6.1f} images/s on one core ({spread})")
    if "original" in rates:
        ratios = [a / b for a, b in zip(rates["jaxseg"], rates["original"], strict=True)]
        print(f"{'ratio':10s} {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"{'jaxseg':10s} {size:,.0f} bytes/image")


if __name__ == "__main__":
    main()
