"""COCO's annotations of 150 images, with synthetic pictures of the same sizes."""

from pathlib import Path

import cv2
import numpy as np
from goldens import DATA, load_json, read

ANNOTATIONS = DATA / "coco_mini" / "annotations"


def write_coco_mini(root: Path) -> Path:
    """Writes both splits in COCO's folder layout."""
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        annotations = ANNOTATIONS / f"instances_{split}.json"
        (root / "annotations" / annotations.name).write_bytes(read(annotations))
        (root / split).mkdir()
        for image in load_json(annotations)["images"]:
            picture = gradient(image["height"], image["width"], seed=image["id"])
            assert cv2.imwrite(str(root / split / image["file_name"]), picture)
    return root


def gradient(height: int, width: int, seed: int) -> np.ndarray:
    """Makes a picture whose colours change linearly from corner to corner."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    return cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
