"""Mask targets from polygons and from bitmaps, cell for cell as the originals make them."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from goldens import load_arrays
from original_masks import bitmap_target
from pycocotools import mask as coco_mask

from jaxseg.config import ConfigError, load_config
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.stream.batch_memory import _image_bytes
from jaxseg.data.stream.targets import no_targets, to_targets
from jaxseg.data.views.bitmaps import pack_bitmaps
from jaxseg.data.views.outlines import pack_polygons
from jaxseg.data.views.placed import PlacedView
from jaxseg.data.views.stretched import StretchedRule
from jaxseg.data.views.view import View
from jaxseg.models import DETECTRON2, MASKRCNN_BENCHMARK, MMDETECTION, TORCHVISION, Conventions, build_model
from jaxseg.models.rcnn.mask_targets import mask_targets
from jaxseg.ops.polygons import polygon_targets
from jaxseg.structures import InputSpec, PolygonPool, Resize, Targets

ROOM = {"cells": 0, "polygons": 2048, "bitmaps": 8192}
draw = jax.jit(polygon_targets, static_argnums=3, static_argnames="least_side")


def placed(picture: tuple[int, int], image: tuple[int, int], rules: Conventions, *, mirror: bool = False, room: int = 0) -> PlacedView:
    kind = rules.mask_targets
    spec = InputSpec(
        input_sizes=((224, 224),),
        mask_size=(56, 56),
        semantic_size=None,
        num_classes=3,
        resize=Resize(rules.resize),
        mask_frame="box",
        pixel_offset=rules.pixel_offset,
        mask_targets=kind,
        mask_pool=room or ROOM[kind],
    )
    return PlacedView(spec, picture, (224, 224), image, mirror)


def outline(rng: np.random.Generator, corners: int, centre: float, radius: float) -> list[float]:
    """Makes a star-shaped polygon."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    distance = rng.uniform(0.4, 1, corners) * radius
    return np.stack([centre + distance * np.cos(angles), centre + distance * np.sin(angles)], 1).ravel().tolist()


def drawn(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


# ---- The drawing of polygons ----


def pool_of(objects: list[list[np.ndarray]], room: int) -> PolygonPool:
    """Packs polygons that are in cells already."""
    view = placed((28, 28), (28, 28), DETECTRON2)
    return pack_polygons([[part.ravel().tolist() for part in parts] for parts in objects], view, points=room, rows=len(objects))


def random_parts(rng: np.random.Generator, kind: str) -> list[np.ndarray]:
    """Makes the polygons of an object over 28 x 28 cells, as float32."""
    parts = []
    for _ in range(rng.integers(1, 4)):
        count = int(rng.integers(3, 150 if kind == "many" else 20))
        points = rng.normal(size=(count, 2)) * 10 ** rng.uniform(-1, 2) + 14
        if kind != "tangled":
            points = np.reshape(outline(rng, count, rng.uniform(0, 28), rng.uniform(1, 60)), (-1, 2))
        # Corners and edges at exact fifths of a cell are the hardest cases of rounding.
        parts.append((np.round(points * 10) / 10 if kind == "ties" else points).astype(np.float32))
    return parts


def test_polygons_are_drawn_cell_for_cell_as_by_pycocotools() -> None:
    """Compares simple and tangled polygons at scales from a tenth of a cell to hundreds of cells."""
    rng = np.random.default_rng(4)
    kinds = ("simple", "tangled", "ties", "many")
    objects = [random_parts(rng, kinds[i % 4]) for i in range(160)]
    pool = pool_of(objects, 20_000)
    regions = np.tile(np.float32([0, 0, 28, 28]), (160, 1))
    ours = np.asarray(draw(pool, np.arange(160, dtype=np.int32), regions, 28, least_side=1.0))
    assert (pool.counts > 128).any()
    for parts, cells in zip(objects, ours, strict=True):
        np.testing.assert_array_equal(cells, drawn([part.ravel().tolist() for part in parts], 28, 28))


def test_polygons_are_shifted_and_scaled_to_each_region() -> None:
    rng = np.random.default_rng(0)
    parts = [np.float32(np.reshape(outline(rng, 30, 100, 60), (-1, 2)))]
    pool = pool_of([parts, []], 64)
    regions = np.float32([[30, 60, 160, 150], [90.3, 80.7, 130.2, 140.9], [50, 50, 50.3, 90], [30, 60, 160, 150]])
    ours = np.asarray(draw(pool, np.int32([0, 0, 0, 1]), regions, 28, least_side=1.0))
    for cells, region in zip(ours[:3], regions, strict=False):
        shifted = (parts[0] - region[:2]) * (np.float32(28) / np.maximum(region[2:] - region[:2], 1))
        np.testing.assert_array_equal(cells, drawn([shifted.ravel().tolist()], 28, 28))
    assert not ours[3].any()


# ---- All originals, from a picture with its annotations ----


def sample(rng: np.random.Generator, size: tuple[int, int], count: int = 4) -> Sample:
    """Makes a picture with objects, of which the last has two polygons and one reaches its edge."""
    polygons = [[outline(rng, 12, 60, radius)] for radius in np.linspace(10, 70, count)]
    polygons[-1].append(outline(rng, 9, 80, 30))
    masks = np.stack([drawn(parts, *size) for parts in polygons])
    corners = [np.concatenate([np.reshape(part, (-1, 2)) for part in parts]) for parts in polygons]
    boxes = np.array([[*np.maximum(points.min(0), 0), *np.minimum(points.max(0), size[::-1])] for points in corners], np.float32)
    return Sample(np.zeros((*size, 3), np.uint8), boxes, np.zeros(count, np.int32), np.zeros(count, bool), masks, 0, polygons)


def regions_around(rng: np.random.Generator, targets: Targets, image: tuple[int, int], offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Makes regions near the boxes of objects, and the boxes themselves, with their objects."""
    objects = np.repeat(np.flatnonzero(targets.valid), 5).astype(np.int32)
    boxes = targets.boxes[objects]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + rng.normal(size=boxes.shape) * 0.15 * sides * (np.arange(len(boxes)) % 5 > 0)[:, None]
    return np.clip(moved, 0, np.array((image[1], image[0]) * 2) - offset).astype(np.float32), objects


@functools.partial(jax.jit, static_argnames="rules")
def ours_of(regions: Any, objects: Any, targets: Targets, image_size: Any, rules: Conventions) -> jax.Array:
    return mask_targets(regions, objects, targets, image_size, size=28, crop_size=56, longest=224, conventions=rules)


def polygon_by_original(picture: Sample, view: View, rules: Conventions, index: int, region: np.ndarray) -> np.ndarray:
    scale, parts = np.array((view.image_size[1] / view.picture_size[1], view.image_size[0] / view.picture_size[0])), []
    assert picture.polygons is not None
    for part in picture.polygons[index] or ():
        points = np.reshape(part, (-1, 2)) * scale
        if view.mirror:
            # maskrcnn-benchmark mirrors points, too, as if they were pixels.
            points[:, 0] = view.image_size[1] - points[:, 0] - rules.pixel_offset
        parts.append(((points - region[:2]) * 28 / np.maximum(region[2:] - region[:2], 1.0)).ravel().tolist())
    return drawn(parts, 28, 28)


def bitmap_by_original(picture: Sample, view: View, rules: Conventions, index: int, region: np.ndarray) -> np.ndarray:
    assert picture.masks is not None
    mask, size = picture.masks[index], (view.image_size[1], view.image_size[0])
    soft = rules.soft_mask_targets
    if view.mirror and soft:
        mask = mask[:, ::-1]
    # Both libraries' nearest neighbours are these; OpenCV's serve for torch's, too.
    mask = cv2.resize(np.ascontiguousarray(mask), size, interpolation=cv2.INTER_NEAREST)
    if view.mirror and not soft:
        mask = mask[:, ::-1]
    if not soft:
        mask = np.pad(mask, [(0, -side % 32) for side in mask.shape])
    return bitmap_target(mask, region, 28, soft=soft)


ORIGINALS = {
    "maskrcnn-benchmark": (MASKRCNN_BENCHMARK, polygon_by_original),
    "detectron2": (DETECTRON2, polygon_by_original),
    "mmdetection": (MMDETECTION, bitmap_by_original),
    "torchvision": (TORCHVISION, bitmap_by_original),
}


@pytest.mark.parametrize("mirror", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_pipeline_makes_the_originals_targets(name: str, mirror: bool) -> None:
    """Compares pictures that are enlarged, reduced and kept as they are, through the same program."""
    rules, by_original = ORIGINALS[name]
    for picture_size, image_size in (((96, 120), (160, 200)), ((110, 117), (110, 117)), ((120, 150), (96, 120))):
        rng = np.random.default_rng(3)
        picture, view = sample(rng, picture_size), placed(picture_size, image_size, rules, mirror=mirror)
        targets = to_targets(picture, view, view.spec, 6)
        regions, objects = regions_around(rng, targets, image_size, rules.pixel_offset)
        ours = np.asarray(ours_of(regions, objects, targets, np.int32(image_size), rules))
        for cells, index, region in zip(ours, objects, regions.astype(np.float64), strict=True):
            theirs = by_original(picture, view, rules, index, region)
            if rules.mask_targets == "polygons":
                # Points are float32 here, so one of thousands is rounded to the next fifth of a cell.
                assert (cells != theirs).sum() <= 1
            else:
                np.testing.assert_allclose(cells, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("original", "rules"),
    [
        ("mrb_poly", MASKRCNN_BENCHMARK),
        pytest.param("d2_poly", DETECTRON2, marks=pytest.mark.slow),
        pytest.param("d2_bitmask", MMDETECTION, marks=pytest.mark.slow),
        ("mmdet_bitmap", MMDETECTION),
        ("tv", TORCHVISION),
    ],
)
def test_the_targets_of_the_originals_functions_are_ours(golden: Path, original: str, rules: Conventions) -> None:
    numbers = load_arrays(golden / "two_stage" / "mask_ops.npz")
    polygons, size = json.loads(str(numbers["polys_json"])), numbers["bitmaps"].shape[1:]
    count = len(polygons)
    boxes = numbers["boxes_clipped"]
    whole = np.tile(np.float32([0, 0, size[1], size[0]]), (count, 1))
    picture = Sample(
        np.zeros((*size, 3), np.uint8), whole, np.zeros(count, np.int32), np.zeros(count, bool), numbers["bitmaps"], 0, polygons
    )
    view = placed(size, size, rules, room=65_536)
    targets = to_targets(picture, view, view.spec, count)
    ours = np.asarray(ours_of(boxes, np.arange(count, dtype=np.int32), targets, np.int32(size), rules))
    np.testing.assert_allclose(ours, numbers[f"{original}_target28"], atol=2e-5)


# ---- What has no room ----


def test_objects_without_room_for_their_polygons_have_cells() -> None:
    rng = np.random.default_rng(1)
    picture = sample(rng, (120, 120))
    assert picture.polygons is not None
    picture.polygons[1] = None  # annotated as run lengths
    picture.polygons[2] = picture.polygons[2] * 33
    view = placed((120, 120), (200, 200), DETECTRON2, room=20)
    targets = to_targets(picture, view, view.spec, 6)
    assert targets.polygons is not None
    assert targets.masks is not None
    np.testing.assert_array_equal(targets.polygons.counts, (13, 0, 0, 0, 0, 0))
    np.testing.assert_array_equal(targets.masks.any((1, 2)), (False, True, True, True, False, False))
    cells = dataclasses.replace(DETECTRON2, mask_targets="cells")
    from_cells = to_targets(picture, dataclasses.replace(view, spec=dataclasses.replace(view.spec, mask_targets="cells")), view.spec, 6)
    regions, objects = regions_around(rng, targets, (200, 200), 0)
    ours = np.asarray(ours_of(regions, objects, targets, np.int32((200, 200)), DETECTRON2))
    only_cells = dataclasses.replace(targets, masks=from_cells.masks, polygons=None)
    theirs = np.asarray(ours_of(regions, objects, only_cells, np.int32((200, 200)), cells))
    np.testing.assert_array_equal(ours[objects > 0], theirs[objects > 0])
    assert ours[objects == 0].any()


def test_the_largest_bitmaps_are_reduced_until_all_fit() -> None:
    picture, view = sample(np.random.default_rng(1), (120, 120)), placed((120, 120), (200, 200), MMDETECTION)
    assert picture.masks is not None
    pack = functools.partial(pack_bitmaps, picture.masks, np.arange(4), view, mirrored_first=False, rows=5)
    whole, less, least = pack(room=8192), pack(room=1024), pack(room=3)
    used = [(pool.sizes[:, 0] * -(-pool.sizes[:, 1] // 8)).sum() for pool in (whole, less, least)]
    assert used[0] > 1024 >= used[1] > 256
    assert used[2] == 3
    np.testing.assert_array_equal(whole.frames, less.frames)
    np.testing.assert_array_equal(whole.sizes[0], less.sizes[0])
    targets = no_targets(view.spec, 5, (224, 224))
    regions = np.concatenate([whole.frames[:4]])
    objects = np.arange(4, dtype=np.int32)
    exact, coarse = (
        np.asarray(ours_of(regions, objects, dataclasses.replace(targets, bitmaps=pool), np.int32((200, 200)), MMDETECTION))
        for pool in (whole, less._replace(bits=np.pad(less.bits, (0, 8192 - 1024))))
    )
    assert (exact != coarse).mean() < 0.03


def test_crowds_and_pictures_without_objects_take_no_room() -> None:
    for rules in (DETECTRON2, MMDETECTION):
        view = placed((120, 120), (120, 120), rules)
        nothing = no_targets(view.spec, 6, (224, 224))
        targets = to_targets(sample(np.random.default_rng(1), (120, 120)), view, view.spec, 6)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nothing) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), targets)
        crowd = dataclasses.replace(sample(np.random.default_rng(1), (120, 120)), crowd=np.ones(4, bool))
        if rules is DETECTRON2:
            pool = to_targets(crowd, view, view.spec, 6).polygons
            assert pool is not None
            assert not pool.counts.any()
        assert _image_bytes(view.spec, (224, 224), 6, 1) >= 224 * 224 * 3 + sum(
            leaf.nbytes for leaf in (*(targets.polygons or ()), *(targets.bitmaps or ())) if leaf.ndim == 1 and leaf.dtype == np.uint8
        )


def test_bitmaps_of_cropped_pictures_are_refused() -> None:
    spec = InputSpec(((64, 64),), (16, 16), None, 3, mask_targets="bitmaps", mask_pool=1024)
    with pytest.raises(ValueError, match="Bitmaps are of whole pictures"):
        StretchedRule(spec)


@pytest.mark.parametrize(("key", "value"), [("mask_points", 0), ("mask_points", 2**25), ("mask_bytes", 100)])
def test_pools_of_impossible_sizes_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"model.roi.{key}"):
        load_config("configs/mask_rcnn_r50_fpn_1x.py", {f"model.roi.{key}": value})


def test_a_config_says_how_its_targets_are_stored() -> None:
    expected = {
        "mask_rcnn_r50_fpn_1x": ("polygons", 6144),
        "mask_rcnn_r50_fpn_3x_detectron2": ("polygons", 6144),
        "mask_rcnn_r50_fpn_1x_mmdetection": ("bitmaps", 131_072),
        "mask_rcnn_r50_fpn_torchvision": ("bitmaps", 131_072),
        "faster_rcnn_r50_fpn_1x": ("cells", 0),
    }
    specs = {name: build_model(load_config(f"configs/{name}.py")).input_spec for name in expected}
    assert {name: (spec.mask_targets, spec.mask_pool) for name, spec in specs.items()} == expected
