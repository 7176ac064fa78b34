"""COCO files with one or two pictures, and all kinds of errors in annotations."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from jaxseg.data.sources.from_config import CocoDataset

HEIGHT, WIDTH = 20, 30
SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]
CATEGORIES = [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}, {"id": 5, "name": "five"}]


def image_entry(number: int = 1, **changes) -> dict:
    return {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH, **changes}


def annotation(**changes) -> dict:
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 5,
        "bbox": [2.0, 3.0, 10.0, 10.0],
        "area": 100.0,
        "iscrowd": 0,
        "segmentation": SQUARE,
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def write_dataset(folder: Path, annotations: list, images: list | None = None, categories: list | None = None) -> tuple[Path, Path]:
    """Writes a JSON file and grey pictures for its entries."""
    images = [image_entry()] if images is None else images
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES if categories is None else categories}
    (folder / "images").mkdir(exist_ok=True)
    for entry in images:
        if isinstance(entry, dict) and entry.get("file_name"):
            cv2.imwrite(str(folder / "images" / entry["file_name"]), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json", folder / "images"


def open_one(folder: Path, *annotations: dict, **options) -> CocoDataset:
    return CocoDataset(*write_dataset(folder, list(annotations)), **options)


def uncompressed(mask: np.ndarray) -> dict:
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    counts = np.diff(np.flatnonzero(np.diff(flat)), prepend=0)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def compressed(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


BAD_ANNOTATIONS = {
    "no object": (7, "no JSON object"),
    "unknown image": (annotation(image_id=77), "image that is not in images"),
    "image id as text": (annotation(image_id="1"), "no whole number"),
    "unknown category": (annotation(category_id=77), "category that is not in categories"),
    "no bbox": (annotation(bbox=None), "without bbox"),
    "bbox of three": (annotation(bbox=[1, 2, 3]), "without bbox"),
    "bbox of text": (annotation(bbox=["1", 2, 3, 4]), "without bbox"),
    "flat bbox": (annotation(bbox=[2, 3, 0, 10]), "bbox has no area"),
    "bbox with NaN": (annotation(bbox=[2, float("nan"), 5, 10]), "bbox has no area"),
    "bbox outside": (annotation(bbox=[WIDTH, 3, 5, 10]), "bbox has no area"),
    "no segmentation": (annotation(segmentation=None), "without segmentation"),
    "empty segmentation": (annotation(segmentation=[]), "without segmentation"),
    "polygon not in a list": (annotation(segmentation=SQUARE[0]), "without segmentation"),
    "polygon of text": (annotation(segmentation=[["a"] * 6]), "without segmentation"),
    "two points": (annotation(segmentation=[[1, 2, 8, 9]]), "fewer than 3 points"),
    "odd number of coordinates": (annotation(segmentation=[[1, 2, 8, 9, 1, 9, 4]]), "fewer than 3 points"),
    "points on a line": (annotation(segmentation=[[1.1, 1.1, 2.2, 2.2, 3.3, 3.3]]), "polygons have no area"),
    "polygon with NaN": (annotation(segmentation=[[1, 2, 8, float("nan"), 1, 9]]), "polygons have no area"),
    "polygon with infinity": (annotation(segmentation=[[1, 2, 8, float("inf"), 1, 9]]), "polygons have no area"),
    "polygon outside": (annotation(segmentation=[[40, 2, 50, 2, 50, 9]]), "lie outside the image"),
    "polygon that reaches far outside": (annotation(segmentation=[[1, 2, 1e9, 2, 5, 9]]), "lie outside the image"),
    "RLE of another size": (annotation(segmentation={"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}), "RLE does not fit"),
    "RLE that ends early": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [10, 5]}), "RLE does not fit"),
    "RLE with a negative run": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [-1, 601]}), "RLE does not fit"),
    "empty compressed RLE": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": ""}), "RLE does not fit"),
    "compressed RLE that ends early": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "a1"}), "RLE does not fit"),
    "compressed RLE of rubbish": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "~ß\n"}), "RLE does not fit"),
    "RLE with half a run": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [0.5, 599.5]}), "RLE does not fit"),
    "RLE without counts": (annotation(segmentation={"size": [HEIGHT, WIDTH]}), "without segmentation"),
}
