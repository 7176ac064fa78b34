"""A synthetic dataset of shapes in COCO's format, so that the demo and tests need no download."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from numpy import ndarray
from pycocotools import mask as coco_mask

from jaxseg.data.sources.dataset import DataError, logger
from jaxseg.files import is_file_name
from jaxseg.pictures import write_picture

# The ids have gaps, as COCO's do.
CATEGORIES = {1: "circle", 2: "rectangle", 4: "triangle", 7: "star"}

# Outlines are drawn at this many times the resolution and then shrunk, which makes edges smooth, as
# in photographs.
_FINER = 4
# Objects with fewer visible pixels, or a smaller visible fraction, are not annotated, as human
# annotators would do.
_LEAST_VISIBLE = 24
_LEAST_VISIBLE_SHARE = 0.25
_CROWD_SHARE = 0.06


@dataclasses.dataclass
class _Shape:
    """A drawn shape, or a crowd of them.

    Attributes:
        category: the id of its category.
        corners: the corners of the outline; None for a crowd.
        pixels: the number of pixels that it covered when it was drawn.
    """

    category: int
    corners: ndarray | None
    pixels: int


def ensure_shapes(root: str | Path, *, train: int = 1500, val: int = 150, size: int = 128, seed: int = 0) -> None:
    """Writes the shapes to the folder `root` unless they are there already; see `write_shapes`.

    They are written to a temporary folder and moved in one step, so that a killed run leaves no
    incomplete dataset, and several processes can start at once and share what one of them wrote.

    Raises:
        DataError: `root` cannot be written, or holds other files.
    """
    root = Path(root)
    if (root / "annotations").is_dir():
        return
    if not is_file_name(str(root)):
        raise DataError(f"The synthetic shapes cannot be written to {str(root)!r}, which is no name that a folder can have.")
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and not (root / "annotations").is_dir():
        raise DataError(f"The synthetic shapes cannot be written to {root}, which is a file or holds other files; choose another folder.")
    logger.info("Writing %d synthetic images to %s.", train + val, root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside:
            half = Path(beside) / "shapes"
            write_shapes(half, train=train, val=val, size=size, seed=seed)
            half.rename(root)
    except OSError as error:
        if not (root / "annotations").is_dir():
            raise DataError(f"The synthetic shapes cannot be written to {root}: {error.strerror or error}.") from None


def write_shapes(root: str | Path, *, train: int = 1500, val: int = 150, size: int = 128, seed: int = 0) -> None:
    """Writes images of coloured shapes in COCO's layout.

    Shapes of four classes overlap, with later ones in front; a mask is the visible part of a shape.
    Masks are polygons if one polygon suffices, and otherwise compressed RLE. A few images have a
    crowd of small shapes, as uncompressed RLE.

    Args:
        root: the folder that gets annotations/, train2017/ and val2017/.
        train: the number of training images.
        val: the number of validation images.
        size: the mean side of the images in pixels; sides vary by a quarter.
        seed: the seed of the random numbers; the same seed gives the same files.
    """
    root = Path(root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, (name, count) in enumerate((("train2017", train), ("val2017", val))):
        (root / name).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            rng = np.random.default_rng((seed, split, i))
            image, objects = draw_image(rng, size)
            file_name = f"{i + 1:06d}.jpg"
            write_picture(root / name / file_name, image, jpeg_quality=92)
            images.append({"id": i + 1, "file_name": file_name, "height": image.shape[0], "width": image.shape[1]})
            annotations += [{"id": len(annotations) + k, "image_id": i + 1, **entry} for k, entry in enumerate(objects, 1)]
        content = {
            "info": {"description": "Synthetic shapes, drawn by jaxseg"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": label} for number, label in CATEGORIES.items()],
        }
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def draw_image(rng: np.random.Generator, size: int) -> tuple[UInt8[ndarray, "H W 3"], list[dict[str, Any]]]:
    """Draws an image, and returns it in RGB with its objects as COCO annotations without ids."""
    height, width = (int(side) for side in np.rint(size * rng.uniform(0.75, 1.25, 2)))
    canvas = _background(rng, height, width)
    # The number of the shape that each pixel belongs to, or -1 for the background.
    owner = np.full((height, width), -1, np.int32)
    shapes: list[_Shape] = []
    if rng.random() < _CROWD_SHARE:
        category = int(rng.choice(list(CATEGORIES)))
        shapes.append(_Shape(category, None, _draw_crowd(rng, canvas, owner, category)))
    for _ in range(rng.integers(1, 7)):
        category = int(rng.choice(list(CATEGORIES)))
        radius = size * np.exp(rng.uniform(np.log(0.07), np.log(0.36)))
        corners = _outline(rng, category) * radius + rng.uniform((0.05 * width, 0.05 * height), (0.95 * width, 0.95 * height))
        shapes.append(_Shape(category, corners, _draw(rng, canvas, owner, number=len(shapes), corners=corners)))
    noise = rng.normal(0, rng.uniform(1, 7), canvas.shape).astype(np.float32)
    image = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    visible = np.bincount(owner[owner >= 0], minlength=len(shapes))
    annotations = [
        _annotation(owner == k, shape)
        for k, shape in enumerate(shapes)
        if visible[k] >= max(_LEAST_VISIBLE, _LEAST_VISIBLE_SHARE * shape.pixels)
    ]
    return image, annotations


def _outline(rng: np.random.Generator, category: int) -> Float64[ndarray, "n 2"]:
    """Returns the corners of a shape around 0 with radius 1, rotated by a random angle."""
    name = CATEGORIES[category]
    if name == "circle":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        # The class includes ellipses.
        points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.75, 1)], axis=1)
    elif name == "rectangle":
        half = np.arctan(rng.uniform(0.5, 1))
        angles = np.array([half, np.pi - half, np.pi + half, -half])
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif name == "triangle":
        angles = np.array([0, 2, 4]) * np.pi / 3 + rng.uniform(-0.25, 0.25, 3)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1)
        points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _background(rng: np.random.Generator, height: int, width: int) -> ndarray:
    """Draws a background of soft blotches around a muted colour, float32."""
    coarse = rng.normal(0, rng.uniform(6, 22), (6, 6, 3)).astype(np.float32)
    grey = rng.uniform(60, 200)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + (grey + rng.uniform(-25, 25, 3)).astype(np.float32)


def _draw(rng: np.random.Generator, canvas: ndarray, owner: ndarray, *, number: int, corners: ndarray) -> int:
    """Paints a shape with smooth edges, light from one side, and sometimes stripes.

    Args:
        rng: the source of random numbers.
        canvas: the picture, which is painted on.
        owner: the number of the shape at each pixel, which is updated.
        number: the number of this shape.
        corners: the corners of its outline, x and y in pixels.

    Returns:
        The number of pixels that it covers.
    """
    height, width = owner.shape
    fine = np.zeros((height * _FINER, width * _FINER), np.uint8)
    cv2.fillPoly(fine, [np.rint(corners * _FINER).astype(np.int32)], 255)
    cover = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    color = _color(rng)
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    span = np.float32(np.ptp(corners @ (np.cos(angle), np.sin(angle))) + 1)
    middle = along[cover > 0].mean() if cover.any() else np.float32(0)
    light = 1 + 0.25 * np.asarray(along - middle) / span
    if rng.random() < 0.3:
        light = light * (1 + 0.12 * np.sign(np.sin(along * np.float32(2 * np.pi / rng.uniform(5, 12)))))
    paint = color * light[..., None]
    canvas += cover[..., None] * (paint - canvas)
    taken = cover >= 0.5
    owner[taken] = number
    return int(taken.sum())


def _draw_crowd(rng: np.random.Generator, canvas: ndarray, owner: ndarray, category: int) -> int:
    """Paints a crowd of small shapes of one class as shape 0, and returns its number of pixels."""
    height, width = owner.shape
    centre = rng.uniform((0.25 * width, 0.25 * height), (0.75 * width, 0.75 * height))
    for _ in range(rng.integers(12, 25)):
        radius = min(height, width) * rng.uniform(0.03, 0.06)
        offset = rng.normal(0, 0.1, 2) * (width, height)
        _draw(rng, canvas, owner, number=0, corners=_outline(rng, category) * radius + centre + offset)
    return int((owner == 0).sum())


def _color(rng: np.random.Generator) -> ndarray:
    """Returns a random RGB colour that is saturated and not dark."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.45, 1), rng.uniform(0.6, 1)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).reshape(3) * 255


def _annotation(mask: ndarray, shape: _Shape) -> dict[str, Any]:
    """Returns an annotation in COCO's format.

    Crowds are uncompressed run lengths, whole shapes polygons, and partly hidden ones compressed
    RLE.
    """
    ys, xs = np.nonzero(mask)
    segmentation: Any
    if shape.corners is None:
        segmentation = _runs(mask)
    elif len(xs) == shape.pixels and (shape.corners >= 0).all() and (shape.corners <= mask.shape[::-1]).all():
        segmentation = [np.round(shape.corners, 2).ravel().tolist()]
    else:
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return {
        "category_id": shape.category,
        "iscrowd": int(shape.corners is None),
        "bbox": [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1],
        "area": len(xs),
        "segmentation": segmentation,
    }


def _runs(mask: ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0, append=len(flat)).tolist()}
