"""The reader of COCO files: right masks, boxes and classes, and a decided answer to everything that can be wrong with them."""

import base64
import json
import logging
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jaxseg.config import Config, ConfigError, override
from jaxseg.data.annotations import run_lengths
from jaxseg.data.coco import CocoDataset, DataError, open_dataset, resolve_classes, resolve_root

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
    """A JSON and grey pictures for its entries."""
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


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:9, 5:20] = 1
    mask[6, 7:9] = 0
    return mask


def test_polygons_and_both_run_length_forms_give_their_masks(tmp_path, mask):
    dataset = open_one(
        tmp_path,
        annotation(segmentation=SQUARE, category_id=9),
        annotation(segmentation=uncompressed(mask), iscrowd=1, category_id=2),
        annotation(segmentation=compressed(mask)),
    )
    sample = dataset[0]
    polygon = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(SQUARE, HEIGHT, WIDTH)))
    np.testing.assert_array_equal(sample.masks, np.stack([polygon, mask, mask]))
    assert sample.masks.dtype == np.uint8
    assert sample.masks.flags.c_contiguous
    np.testing.assert_array_equal(sample.boxes, np.array([[2, 3, 12, 13]] * 3, np.float32))
    # Classes count in ascending order of category id, 2, 5, 9; a crowd keeps its class.
    assert sample.classes.tolist() == [2, 0, 1]
    assert sample.crowd.tolist() == [False, True, False]
    assert (sample.image.shape, sample.image.dtype, sample.index) == ((HEIGHT, WIDTH, 3), np.uint8, 0)
    assert (dataset.category_ids, dataset.class_names) == ((2, 5, 9), ("two", "five", "nine"))


def test_several_polygons_are_one_mask(tmp_path):
    second = [20.0, 3.0, 25.0, 3.0, 25.0, 8.0]
    sample = open_one(tmp_path, annotation(segmentation=[*SQUARE, second]))[0]
    assert sample.masks[0, 5, 5] == 1
    assert sample.masks[0, 4, 23] == 1
    assert sample.masks[0, 5, 15] == 0


@pytest.mark.parametrize("shift", [0.0, 0.123456789, -1.5])
def test_polygons_keep_every_bit_whatever_their_decimals(tmp_path, shift):
    """Two decimals are held in 16 bits; more decimals, or coordinates outside the image, must not be rounded."""
    polygon = [[2.31 + shift, 3.57, 12.9, 3.3, 12.7, 13.1, 2.1, 13.49]]
    sample = open_one(tmp_path, annotation(segmentation=polygon))[0]
    np.testing.assert_array_equal(sample.masks[0], coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, HEIGHT, WIDTH))))


def test_real_images_agree_with_pycocotools(coco_mini):
    annotations = coco_mini / "annotations" / "instances_train2017.json"
    dataset = CocoDataset(annotations, coco_mini / "train2017")
    reference = COCO(str(annotations))
    rows = 0
    for index in range(0, len(dataset), 3):
        sample = dataset[index]
        entries = reference.loadAnns(reference.getAnnIds(imgIds=dataset.image_ids[index]))
        np.testing.assert_array_equal(sample.masks, np.stack([reference.annToMask(entry) for entry in entries]))
        boxes = np.array([entry["bbox"] for entry in entries])
        np.testing.assert_allclose(sample.boxes, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), atol=1e-4)
        assert [dataset.category_ids[k] for k in sample.classes] == [entry["category_id"] for entry in entries]
        assert sample.crowd.tolist() == [bool(entry["iscrowd"]) for entry in entries]
        rows += len(entries)
    assert rows > 200
    assert not dataset.skipped


def test_images_without_objects_are_left_out_or_kept(tmp_path):
    paths = write_dataset(tmp_path, [annotation(image_id=2)], [image_entry(1), image_entry(2)])
    dataset = CocoDataset(*paths)
    assert (dataset.image_ids, dataset.left_out, dataset.object_counts.tolist()) == ([2], 1, [1])
    kept = CocoDataset(*paths, keep_empty=True)
    assert (kept.image_ids, kept.left_out, kept.object_counts.tolist()) == ([1, 2], 0, [0, 1])
    assert kept[0].masks.shape == (0, HEIGHT, WIDTH)
    assert kept[0].boxes.shape == (0, 4)


def test_annotations_find_their_image_in_any_order(tmp_path):
    entries = [annotation(image_id=i, category_id=c) for i, c in ((3, 2), (1, 5), (3, 9), (1, 2))]
    dataset = CocoDataset(*write_dataset(tmp_path, entries, [image_entry(i) for i in (1, 3)]))
    assert [dataset.objects(i).classes.tolist() for i in range(2)] == [[1, 0], [0, 2]]


def test_ground_truth_is_what_pycocotools_wants(tmp_path, mask):
    dataset = open_one(tmp_path, annotation(id=0), annotation(id=0, segmentation=uncompressed(mask), iscrowd=1, area=None))
    reference = COCO()
    reference.dataset = json.loads(json.dumps(dataset.coco_ground_truth()))
    reference.createIndex()
    # Numbered from 1 on: pycocotools reads a match with annotation 0 as no match.
    assert sorted(reference.anns) == [1, 2]
    assert reference.anns[1]["bbox"] == [2.0, 3.0, 10.0, 10.0]
    assert (reference.anns[2]["iscrowd"], reference.anns[2]["category_id"]) == (1, 5)
    # The area is the file's, and where it has none the mask's.
    assert [reference.anns[k]["area"] for k in (1, 2)] == [100.0, mask.sum()]
    np.testing.assert_array_equal(reference.annToMask(reference.anns[2]), mask)
    assert reference.cats[5]["name"] == "five"


def test_a_pickled_dataset_is_small_and_the_same(tmp_path):
    dataset = open_one(tmp_path, *[annotation(segmentation=[(np.array(SQUARE[0] * 25) + i % 5).tolist()]) for i in range(1000)])
    pickled = pickle.dumps(dataset)
    # 200 coordinates of 2 bytes, and a row.
    assert len(pickled) < 1000 * 550
    np.testing.assert_array_equal(pickle.loads(pickled)[0].masks, dataset[0].masks)


def test_an_index_beyond_the_end_stops_an_iteration(tmp_path):
    assert len(list(open_one(tmp_path, annotation()))) == 1


# Bad single annotations: left out, counted, told.

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


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
def test_a_bad_annotation_is_skipped_counted_and_told_once(tmp_path, caplog, name):
    bad, reason = BAD_ANNOTATIONS[name]
    with caplog.at_level(logging.WARNING, "jaxseg"):
        dataset = open_one(tmp_path, bad, annotation(category_id=9), bad)
    assert [(reason in told, count) for told, count in dataset.skipped.items()] == [(True, 2)]
    assert [record.message.count(reason) for record in caplog.records] == [1]
    assert "skipped 2 " in caplog.records[0].message
    sample = dataset[0]
    assert sample.classes.tolist() == [2]
    assert sample.masks.sum() == 100


def test_a_bad_polygon_beside_a_good_one_is_dropped(tmp_path):
    dataset = open_one(tmp_path, annotation(segmentation=[[1, 2, 8, 9], *SQUARE, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]]))
    assert not dataset.skipped
    assert dataset[0].masks.sum() == 100


def test_a_box_that_reaches_over_the_edge_is_kept_as_annotated(tmp_path):
    dataset = open_one(tmp_path, annotation(bbox=[-1, 3, WIDTH + 3, 10]))
    assert dataset[0].boxes.tolist() == [[-1, 3, WIDTH + 2, 13]]


def test_all_reasons_are_counted_apart(tmp_path):
    dataset = open_one(tmp_path, *(bad for bad, _ in BAD_ANNOTATIONS.values()), annotation())
    assert sum(dataset.skipped.values()) == len(BAD_ANNOTATIONS)
    assert len(dataset.skipped) == 8


def test_run_lengths_are_those_pycocotools_reads(mask):
    rng = np.random.default_rng(0)
    for picture in (mask, np.zeros_like(mask), np.ones_like(mask), rng.integers(0, 2, (97, 301), dtype=np.uint8)):
        assert run_lengths(compressed(picture)["counts"].encode()).tolist() == uncompressed(picture)["counts"]


# Structure: refused at opening with one sentence.


def refused(folder: Path, content) -> str:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as error:
        CocoDataset(folder / "a.json", folder / "images")
    message = str(error.value)
    assert str(folder / "a.json") in message
    assert "\n" not in message
    return message


def test_broken_json_tells_line_and_column(tmp_path):
    assert "line 2, column 13" in refused(tmp_path, '{"images": [],\n  "broken": }')


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        CocoDataset(tmp_path / "a.json", tmp_path / "images")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1], "it holds a list"),
        ("[" * 100_000, "nested too deeply"),
        ({"images": [], "annotations": []}, "it has no categories, only images, annotations"),
        ({}, "only nothing"),
        ({"images": {}, "annotations": [], "categories": []}, "its images is a dict"),
        ({"images": [], "annotations": [], "categories": []}, "no categories"),
        ({"images": [], "annotations": [], "categories": CATEGORIES}, "no images"),
        ({"images": [image_entry()], "annotations": [], "categories": [{"id": "2", "name": "two"}]}, "id '2'; it must be a whole number"),
        ({"images": [image_entry()], "annotations": [], "categories": [{"id": 2}]}, "name None"),
        ({"images": [image_entry()], "annotations": [], "categories": [5]}, "categories[0]"),
        ({"images": [image_entry()], "annotations": [], "categories": CATEGORIES[:1] * 2}, "categories[1]"),
        ({"images": [5], "annotations": [], "categories": CATEGORIES}, "images[0]"),
        ({"images": [image_entry(id="x")], "annotations": [], "categories": CATEGORIES}, "the id 'x'"),
        ({"images": [image_entry(file_name="")], "annotations": [], "categories": CATEGORIES}, "the file_name ''"),
        ({"images": [image_entry(height=0)], "annotations": [], "categories": CATEGORIES}, "the height 0"),
        ({"images": [image_entry(width=10**9)], "annotations": [], "categories": CATEGORIES}, "the width 1000000000"),
        ({"images": [image_entry(), image_entry()], "annotations": [], "categories": CATEGORIES}, "image id 1 more than once"),
        ({"images": [image_entry()], "annotations": [], "categories": CATEGORIES}, "None of the 1 images"),
    ],
)
def test_a_wrong_structure_is_refused_and_named(tmp_path, content, told):
    assert told in refused(tmp_path, content)


def test_a_missing_file_or_folder_is_named(tmp_path):
    annotations, images = write_dataset(tmp_path, [annotation()])
    with pytest.raises(DataError, match=r"no annotation file .*none\.json"):
        CocoDataset(tmp_path / "none.json", images)
    with pytest.raises(DataError, match=r"no image folder .*nowhere"):
        CocoDataset(annotations, tmp_path / "nowhere")


def test_nothing_usable_is_refused(tmp_path):
    with pytest.raises(DataError, match="no image with a usable annotation"):
        open_one(tmp_path, annotation(bbox=None))


def test_missing_image_files_are_skipped_and_counted(tmp_path):
    paths = write_dataset(tmp_path, [annotation(image_id=1), annotation(image_id=2)], [image_entry(1), image_entry(2)])
    (paths[1] / "1.png").unlink()
    dataset = CocoDataset(*paths)
    assert dataset.skipped == {"images whose file is missing, for instance 1.png": 1}
    assert dataset.image_ids == [2]
    assert len(dataset[0].classes) == 1


def test_images_may_lie_in_subfolders(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    dataset = CocoDataset(*write_dataset(tmp_path, [annotation()], [image_entry(file_name="a/1.png")]))
    assert dataset[0].image.shape == (HEIGHT, WIDTH, 3)


def test_a_config_with_other_names_for_the_categories_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"calls category 5 'five', but .* calls it 'cat'.*--config.model.num_classes=3"):
        open_one(tmp_path, annotation(), category_ids=(2, 5), class_names=("two", "cat"))
    with pytest.raises(DataError, match="none of the categories 1, 3"):
        open_one(tmp_path, annotation(), category_ids=(1, 3), class_names=("one", "three"))


def test_a_config_may_use_some_of_the_categories(tmp_path):
    dataset = open_one(tmp_path, annotation(category_id=9), annotation(category_id=2), category_ids=(5, 9), class_names=("five", "nine"))
    assert dataset.objects(0).classes.tolist() == [1]
    assert dataset.skipped == {"annotations of a category that the config leaves out": 1}


# Image files.


def png(color_type: int, bits: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")))


# 16 x 16, Adobe CMYK: quarters of pure cyan, magenta, yellow and half black.
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwADAgIDAgIDAwMDBAMDBAUIBQUEBAUKBwcGCAwKDAwLCgsLDQ4SEA0OEQ4LCxAWEBETFBUVFQwPFxgWFBgSFBUU/8AA"
    "FAgAEAAQBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQci"
    "cRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqi"
    "o6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkASwAAPwD8qq/VOv1Tr9U6/qor+Veiiiv6"
    "qK/lXooor+qivypr/9k="
)


def read_image(folder: Path, data: bytes, name: str = "1.png", **changes) -> np.ndarray:
    paths = write_dataset(folder, [annotation()], [image_entry(file_name=name, **changes)])
    (paths[1] / name).write_bytes(data)
    return CocoDataset(*paths)[0].image


def test_colours_come_out_as_rgb(tmp_path):
    rows = [bytes([250, 128, 3]) * WIDTH] * HEIGHT
    assert read_image(tmp_path, png(2, 8, rows))[0, 0].tolist() == [250, 128, 3]


def test_grey_becomes_rgb(tmp_path):
    assert read_image(tmp_path, png(0, 8, [bytes(range(WIDTH))] * HEIGHT))[3, 7].tolist() == [7, 7, 7]


def test_a_palette_becomes_its_colours(tmp_path):
    palette = bytes([10, 20, 30, 200, 100, 50])
    image = read_image(tmp_path, png(3, 8, [bytes([0, 1] * (WIDTH // 2))] * HEIGHT, (b"PLTE", palette)))
    assert image[0, :2].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_alpha_is_dropped(tmp_path):
    image = read_image(tmp_path, png(6, 8, [bytes([250, 128, 3, 0]) * WIDTH] * HEIGHT))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image[0, 0].tolist() == [250, 128, 3]


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    values = np.linspace(0, 65535, WIDTH).astype(">u2")
    assert read_image(tmp_path, png(0, 16, [values.tobytes()] * HEIGHT))[0, :, 1].tolist() == (values >> 8).tolist()


def test_cmyk_becomes_rgb(tmp_path):
    image = read_image(tmp_path, CMYK_JPEG, "1.jpg", height=16, width=16).astype(int)
    assert abs(image[[3, 3, 12, 12], [3, 12, 3, 12]] - [[0, 255, 255], [255, 0, 255], [255, 255, 0], [127, 127, 127]]).max() <= 2


def turned_jpeg(height: int, width: int) -> bytes:
    """A JPEG, left half black, that asks to be turned by 90 degrees to the right."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[:, : width // 2] = 0
    data = cv2.imencode(".jpg", image)[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def test_orientation_is_applied_unless_the_annotations_are_for_the_stored_pixels(tmp_path):
    turned = read_image(tmp_path, turned_jpeg(WIDTH, HEIGHT), "1.jpg")
    assert turned.shape == (HEIGHT, WIDTH, 3)
    assert turned[2].max() < 20
    assert turned[-2].min() > 235
    stored = read_image(tmp_path, turned_jpeg(HEIGHT, WIDTH), "1.jpg")
    assert stored.shape == (HEIGHT, WIDTH, 3)
    assert stored[:, 2].max() < 20
    assert stored[:, -2].min() > 235


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("part", [0, 0.1, 0.6, 0.99])
def test_a_truncated_image_is_an_error_that_names_it(tmp_path, extension, part):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = cv2.imencode(extension, noise)[1].tobytes()
    name = f"cut{extension}"
    with pytest.raises(DataError, match=rf"{name} is broken or no image"):
        read_image(tmp_path, data[: int(part * len(data))], name)


def test_an_image_of_another_size_is_an_error_that_names_both(tmp_path):
    with pytest.raises(DataError, match=r"1.png has 30 x 20 pixels, but its annotations are for 40 x 20"):
        read_image(tmp_path, png(0, 8, [bytes(WIDTH)] * HEIGHT), width=40)


def test_an_image_that_vanishes_later_is_an_error_that_names_it(tmp_path):
    dataset = open_one(tmp_path, annotation())
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1.png cannot be read"):
        dataset[0]


# What a config names.


def test_without_coco_one_sentence_says_where_how_and_what_instead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXSEG_DATA", raising=False)
    with pytest.raises(DataError) as error:
        open_dataset(Config(), "train")
    message = str(error.value)
    assert str(tmp_path / "data" / "coco" / "annotations" / "instances_train2017.json") in message
    assert "http://images.cocodataset.org/zips/train2017.zip" in message
    assert "annotations_trainval2017.zip" in message
    assert "$JAXSEG_DATA" in message
    assert "python train.py --config configs/demo_shapes.py" in message
    assert "\n" not in message


def test_a_missing_own_dataset_names_the_field(tmp_path):
    config = override(Config(), {"data.root": str(tmp_path), "data.val_annotations": "mine.json"})
    with pytest.raises(DataError, match=r"mine.json, which data.val_annotations"):
        open_dataset(config, "val")


def test_the_root_is_the_config_then_the_environment_then_data_coco(monkeypatch):
    monkeypatch.setenv("JAXSEG_DATA", "elsewhere")
    assert resolve_root(override(Config(), {"data.root": "here"}).data) == Path("here")
    assert resolve_root(Config().data) == Path("elsewhere")
    monkeypatch.delenv("JAXSEG_DATA")
    assert resolve_root(Config().data) == Path("data/coco")


@pytest.fixture
def own_dataset(tmp_path) -> Config:
    write_dataset(tmp_path, [annotation(image_id=2)], [image_entry(1), image_entry(2)])
    changes = {"data.root": tmp_path.as_posix(), "model.num_classes": 3}
    changes |= {f"data.{split}_annotations": "a.json" for split in ("train", "val")}
    changes |= {f"data.{split}_images": "images" for split in ("train", "val")}
    return override(Config(), changes)


def test_validation_keeps_images_without_objects_and_training_by_config(own_dataset):
    assert len(open_dataset(own_dataset, "val")) == 2
    assert len(open_dataset(own_dataset, "train")) == 1
    assert len(open_dataset(override(own_dataset, {"data.keep_empty": True}), "train")) == 2


def test_classes_are_read_from_the_training_annotations(own_dataset):
    resolved = resolve_classes(own_dataset)
    assert resolved.data.category_ids == (2, 5, 9)
    assert resolved.data.class_names == ("two", "five", "nine")
    resolved.validate()
    assert resolve_classes(resolved) is resolved


def test_a_wrong_number_of_classes_is_refused_with_the_right_one(own_dataset):
    with pytest.raises(ConfigError, match=r"num_classes = 4, .* 3 categories \(two, five, nine\); set --config.model.num_classes=3"):
        resolve_classes(override(own_dataset, {"model.num_classes": 4}))


def test_a_limit_takes_the_first_images(own_dataset):
    everything = open_dataset(override(own_dataset, {"data.keep_empty": True}), "train")
    first = open_dataset(override(own_dataset, {"data.keep_empty": True, "data.limit_images": 1}), "train")
    assert first.image_ids == everything.image_ids[:1]
    assert len(first.coco_ground_truth()["images"]) == 1
    np.testing.assert_array_equal(first[0].masks, everything[0].masks)
    with pytest.raises(IndexError):
        first[1]
