"""Annotation files that are large, malicious or partly wrong.

Memory stays bounded, no process crashes, and the message says what is wrong.
"""

import dataclasses
import functools
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from tiny_coco import CATEGORIES, HEIGHT, SQUARE, WIDTH, annotation, image_entry, open_one, write_dataset

from jaxseg.config import Config, override
from jaxseg.data.sources import from_config as coco_module
from jaxseg.data.sources.coco import json_stream
from jaxseg.data.sources.coco.run_lengths import checked_counts, compressed_runs, run_lengths
from jaxseg.data.sources.dataset import require_mask_memory
from jaxseg.data.sources.from_config import CocoDataset, DataError, open_dataset, resolve_classes
from jaxseg.memory import physical_memory
from jaxseg.models import YolactConfig

# ---- Memory ----

# This script writes each file, opens it in a separate process in which everything has been
# imported, and reports by how much the memory of that process grows.
MEASURE = r"""
import json, os, resource, sys
import numpy, jaxseg.data.sources.from_config
from pathlib import Path
from jaxseg.data.sources.from_config import CocoDataset, DataError

folder = Path(sys.argv[1])
(folder / "1.png").write_bytes(b"")
image, category = '{"id": 1, "file_name": "1.png", "height": 50, "width": 50}', '{"id": 1, "name": "a"}'
row = '{"image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9], "segmentation": [%s]},'
good = row % "[5, 5, 9, 5, 9, 9]"


def file(annotations="", images="", names="", info="0"):
    lists = f'"images": [{images}{image}], "annotations": [{annotations}{good[:-1]}], "categories": [{names}{category}]'
    return f'{{"info": {info}, {lists}}}'


def many(text, megabytes=12):
    return text * (megabytes * 1_000_000 // len(text))


polygon = "[" + "12.34,6.78,30.5,7.25," * 12 + "1.5,49]"


def numbered(text, count):
    return "".join(text % i for i in range(2, count))


files = {
    "ordinary": lambda: file(many(row % polygon, 40)),
    "info of lists": lambda: file(info="[" + many("[],") + "0]"),
    "long info": lambda: file(info='"' + many("a") + '"'),
    "numbers": lambda: file(many("7,", 4)),
    "one list": lambda: file("[" + many("[],") + "0],"),
    "nested lists": lambda: file("[" + many("[" * 900 + "]" * 900 + ",") + "0],"),
    "no boxes": lambda: file(many('{"image_id":1,"category_id":1},')),
    "short polygons": lambda: file(many(row % "[0,0,0,1,1,0.123]")),
    "long polygons": lambda: file(many(row % ("[" + "1,2," * 700_000 + "0,0,0,-1.12345,1,0]"))),
    "long run lengths": lambda: file(many('{"image_id":1,"category_id":1,"bbox":[0,0,1,9],"segmentation":{"size":[50,50],"counts":"%s"}},'
        % ("0" * 2_800_000), 3)),
    "an emoji in a name": lambda: file(many(row % polygon, 40), names='{"id": 2, "name": "\U0001f600"},'),
    "emoji in file names": lambda: file(images=numbered('{"id":%d,"file_name":"' + "a" * 80 + '\U0001f600","height":9,"width":9},', 70000)),
    "short image entries": lambda: file(images=numbered('{"id":%d,"file_name":"ab","height":9,"width":9},', 200_000)),
    "categories": lambda: file(names=numbered('{"id":%d,"name":"a"},', 300_000)),
}
for name in sys.argv[2:]:
    content = files[name]
    (folder / "a.json").write_text(content(), encoding="utf-8")
    if not os.fork():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            told = f"{CocoDataset(folder / 'a.json', folder).object_counts.sum()} objects"
        except DataError as error:
            told = str(error)
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([name, (folder / "a.json").stat().st_size, growth * 1024, told]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Returns a function of the names of files.

    It returns the size of each file, the growth of memory when it is opened, and the outcome.
    """

    @functools.cache
    def run(*names: str) -> dict[str, tuple[int, int, str]]:
        command = [sys.executable, "-c", MEASURE, str(tmp_path_factory.mktemp("files")), *names]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return {name: (size, growth, told) for name, size, growth, told in map(json.loads, lines)}

    return run


MEASURED = {
    "ordinary": "objects",
    "info of lists": "objects",
    "long info": "objects",
    "numbers": "objects",
    "one list": "has over 3,000,000 characters or 131,072 lists and objects",
    "nested lists": "has over 3,000,000 characters or 131,072 lists and objects",
    "no boxes": "objects",
    "short polygons": "objects",
    "long polygons": "objects",
    "long run lengths": "objects",
    "an emoji in a name": "objects",
    "emoji in file names": "objects",
    "short image entries": "objects",
    "categories": "over 100,000 categories",
}


# These take seconds each, and the others have the same kinds of content.
SLOW = ("numbers", "no boxes", "short polygons", "an emoji in a name", "short image entries")
FAST = tuple(name for name in MEASURED if name not in SLOW)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_opening_takes_at_most_four_times_the_file_and_100_mb(measure, name):
    size, growth, told = measure(*(SLOW if name in SLOW else FAST))[name]
    assert growth <= 4 * size + 100e6
    assert MEASURED[name] in told


def test_an_ordinary_file_takes_about_as_much_memory_as_it_is_long(measure):
    size, growth, _ = measure(*FAST)["ordinary"]
    assert growth <= 1.5 * size


# ---- The stream ----


def opened(folder: Path, text: str, **options) -> CocoDataset:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "1.png").touch()
    (folder / "a.json").write_text(text, encoding="utf-8")
    return CocoDataset(folder / "a.json", folder / "images", **options)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(DataError) as error:
        opened(folder, text)
    message = str(error.value)
    assert str(folder / "a.json") in message
    assert "\n" not in message
    assert len(message) < 1000
    return message


def content(**changes) -> dict:
    return {"images": [image_entry()], "annotations": [annotation()], "categories": CATEGORIES, **changes}


@pytest.mark.parametrize("piece", [1, 3, 50, 1000])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("keys", [("images", "annotations", "categories", "info"), ("info", "annotations", "categories", "images")])
def test_any_order_of_keys_and_any_piece_of_the_file_give_the_same(tmp_path, monkeypatch, piece, indent, keys):
    monkeypatch.setattr(json_stream, "_PIECE", piece)
    everything = content(info={"é😀": ['a"]}\\', [], {}, 1.5e3, None]}, annotations=[annotation(), annotation(bbox=[1.5, -2e-1, 1e1, 15])])
    text = "\ufeff" + json.dumps({key: everything[key] for key in keys}, indent=indent, ensure_ascii=False)
    objects = opened(tmp_path, text).objects(0)
    assert objects.boxes.tolist() == [[2, 3, 10, 10], [1.5, -0.2, 10, 15]]
    assert [rle["size"] for rle in objects.rles] == [[HEIGHT, WIDTH]] * 2


@pytest.mark.parametrize("piece", [1, 7, 10**6])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ('{"images": [],\n  "broken": }', "line 2, column 13"),
        ('{"images": [\n\n {"id": 1},\n  {"id": tru}]}', "line 4, column 10"),
        ('{"images": [{"id": 1} {"id": 2}]}', "line 1, column 23: Expecting ',' delimiter"),
        ('{"images": [{"id": 1},]}', "line 1, column 23"),
        ('{"images": []', "line 1, column 14"),
        ('{"info": [1, [2], "a', "line 1, column 21"),
        ('{"images": [] "categories": []}', "line 1, column 15"),
        ('{"images": [],}', "line 1, column 15"),
        ("{images: []}", "line 1, column 2"),
        (json.dumps(content()) + "\n x", "line 2, column 2: Extra data"),
        (json.dumps(content())[:-1] + ', "images": []}', "has the key images more than once"),
        ('{"info": ' + "[" * 5000, "nested too deeply"),
        ('{"images": [' + "[" * 5000, "nested too deeply"),
        ('{"images": [\n{"id": ' + "1" * 5000 + "}]}", "line 2 has a whole number of over 4,300 digits"),
        ('"text"', "it holds a str"),
        ("12", "it holds a int"),
    ],
)
def test_broken_json_is_told_with_its_place_wherever_pieces_end(tmp_path, monkeypatch, piece, text, told):
    monkeypatch.setattr(json_stream, "_PIECE", piece)
    assert told in refused(tmp_path, text)


@pytest.mark.parametrize("piece", [1, 10**6])
def test_the_byte_that_is_not_utf8_is_told(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(json_stream, "_PIECE", piece)
    (tmp_path / "images").mkdir()
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"info": "\xc3\xa9 \xff"}')
    with pytest.raises(DataError, match="byte 16 is not UTF-8"):
        CocoDataset(tmp_path / "a.json", tmp_path / "images")


# ---- Values ----


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": [image_entry(id=2**70)]}, "it must be a whole number of at most 64 bits"),
        ({"images": [image_entry(id=list(range(300_000)))]}, "images[0]"),
        ({"images": [image_entry(file_name="a\0b")]}, r"the file_name 'a\x00b'"),
        ({"images": [image_entry(file_name="a\ud800b")]}, r"the file_name 'a\ud800b'"),
        ({"images": [image_entry(), image_entry(2, height="x" * 10**6)]}, "images[1]"),
        ({"categories": [{"id": 2**70, "name": "a"}]}, "categories[0]"),
        ({"categories": [{"id": 1, "name": "a\ud800"}]}, r"the name 'a\ud800'"),
        ({"categories": [{"id": 1, "name": ["x"] * 10**5}]}, "categories[0]"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_shown_in_short(tmp_path, changes, told):
    assert told in refused(tmp_path, json.dumps(content(**changes)))


@pytest.mark.parametrize("changes", [{"image_id": 2**70}, {"category_id": -(2**63)}, {"id": 2**70, "image_id": "x"}])
def test_ids_of_annotations_beyond_64_bits_are_counted(tmp_path, changes):
    dataset = open_one(tmp_path, annotation(**changes), annotation(id=2**70))
    assert [("at most 64 bits" in told, count) for told, count in dataset.skipped.items()] == [(True, 1)]


@pytest.mark.parametrize("flag", ["1", "", 2, -1, 0.5, [1], {}, float("nan")])
def test_an_iscrowd_that_is_no_truth_value_is_skipped_under_its_own_reason(tmp_path, flag):
    dataset = open_one(tmp_path, annotation(iscrowd=flag), annotation())
    assert dataset.skipped == {"annotations whose iscrowd is neither 0 nor 1": 1}


def test_an_iscrowd_may_be_a_truth_value_null_or_absent(tmp_path):
    flags = [0, 1, True, False, None]
    text = json.dumps(content(annotations=[{**annotation(), "iscrowd": flag} for flag in flags] + [annotation(iscrowd=None)]))
    dataset = opened(tmp_path, text)
    assert dataset.objects(0).crowd.tolist() == [False, True, True, False, False, False]


# ---- Normalised coordinates ----

UNIT_SQUARE = [[0.1, 0.1, 0.6, 0.1, 0.6, 0.6, 0.1, 0.6]]


def test_normalised_boxes_are_left_out_under_their_own_reason(tmp_path):
    unit = annotation(bbox=[0.1, 0.2, 0.9 + 1e-9, 0.8])
    dataset = open_one(tmp_path, unit, unit, annotation())
    assert dataset.skipped == {"annotations whose bbox lies within 0..1, as normalised coordinates do; COCO's are in pixels": 2}
    with pytest.raises(DataError, match=r"no image with a usable annotation.*2 annotations whose bbox lies within 0\.\.1"):
        open_one(tmp_path, unit, unit)


def test_normalised_polygons_are_left_out_under_their_own_reason(tmp_path):
    dataset = open_one(tmp_path, *[annotation(segmentation=UNIT_SQUARE)] * 2, annotation())
    assert dataset.skipped == {"annotations whose polygons lie within 0..1, as normalised coordinates do; COCO's are in pixels": 2}
    assert dataset[0].masks.sum() == 100


def test_a_pixel_in_the_corner_stays_in_an_ordinary_file(tmp_path):
    corner = annotation(bbox=[0, 0, 1, 1], segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]])
    dataset = open_one(tmp_path, corner, annotation(), annotation())
    assert not dataset.skipped
    assert dataset[0].masks[0].sum() == 1


def test_boxes_of_a_pixel_stay_in_a_picture_of_two(tmp_path):
    polygon = [[0, 0, 1, 0, 1, 1, 0, 1]]
    text = json.dumps(content(images=[image_entry(height=2, width=2)], annotations=[annotation(bbox=[0, 0, 1, 1], segmentation=polygon)]))
    assert not opened(tmp_path, text).skipped


# ---- What would crash pycocotools ----


def zigzag(points: int, side: int) -> list[float]:
    """Makes a polygon that goes up and down across a square; its last corner gives it an area."""
    return [float(value) for i in range(points) for value in (i * side / points, side * (i % 2))] + [side, side]


def large(folder: Path, size: tuple[int, int], *segmentations) -> CocoDataset:
    entries = [annotation(segmentation=segmentation) for segmentation in segmentations]
    return opened(folder, json.dumps(content(images=[image_entry(height=size[0], width=size[1])], annotations=entries)))


@pytest.mark.parametrize("polygons", [[zigzag(20_000, 60_000)], [zigzag(50, 60_000)] * 2])
def test_polygons_with_a_very_long_outline_are_skipped(tmp_path, polygons):
    dataset = large(tmp_path, (60_000, 60_000), polygons, [[5, 5, 90, 5, 90, 90]])
    assert [("outline of over 4,194,304 pixels" in told, count) for told, count in dataset.skipped.items()] == [(True, 1)]


def test_a_long_outline_below_the_limit_is_kept(tmp_path):
    dataset = large(tmp_path, (600, 60_000), [zigzag(6000, 600)])
    assert not dataset.skipped
    assert len(dataset.objects(0).rles) == 1


def test_polygons_whose_runs_pycocotools_cannot_write_are_skipped(tmp_path):
    """Two bars of full height take 24 characters and a NUL, for which 24 bytes are allocated."""
    bars = [[float(a), 0, b, 0, b, 10_000, a, 10_000] for a, b in ((1700, 3400), (5100, 10_000))]
    dataset = large(tmp_path, (10_000, 10_000), bars, bars[:1])
    assert list(dataset.skipped.values()) == [1]
    assert len(dataset.objects(0).rles) == 1


def test_a_large_object_in_a_picture_of_ordinary_size_is_kept(tmp_path):
    dataset = large(tmp_path, (7000, 7000), [[0.0, 0, 7000, 0, 7000, 7000, 0, 7000]])
    assert coco_mask.area(dataset.objects(0).rles[0]) == 7000 * 7000


def test_long_runs_are_written_and_read(tmp_path):
    """pycocotools itself would write 24 characters and a NUL into 24 bytes of memory here."""
    runs = [2**24, 2**24, 2**24, 2**25]
    runs.append(10_000 * 10_000 - sum(runs))
    dataset = large(tmp_path, (10_000, 10_000), {"size": [10_000, 10_000], "counts": runs})
    (rle,) = dataset.objects(0).rles
    assert run_lengths(rle["counts"]).tolist() == runs
    assert coco_mask.area(rle) == sum(runs[1::2])


def test_runs_that_end_the_process_in_pycocotools_are_skipped(tmp_path):
    size, runs = [60_000, 60_000], [2**29, 2**29, 2**29]
    runs.append(size[0] * size[1] - sum(runs))
    dataset = large(tmp_path, size, {"size": size, "counts": runs}, [[5, 5, 90, 5, 90, 90]])
    assert dataset.skipped == {"annotations whose RLE does not fit the image": 1}


def test_written_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for largest in (2, 40, 5000, 2**24):
        runs = rng.integers(0, largest, 40_000 if largest < 5000 else 9)
        size = (int(runs.sum()), 1)
        assert compressed_runs(runs) == coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, *size)["counts"]
        assert run_lengths(compressed_runs(runs)).tolist() == runs.tolist()


@pytest.mark.parametrize("counts", [[2**70], [-1, 601], [True] * 600, [600.0], [], [2**62] * 4, "é", "P", "0" * 70_000 + "P", "PPPPPPP0"])
def test_bad_run_lengths_are_told_apart(counts):
    assert checked_counts(counts, 600) is None


def test_masks_that_would_not_fit_into_memory_are_refused_with_their_size(tmp_path):
    side = 60_000
    count = physical_memory() // (4 * side * side) + 1
    require_mask_memory(count - 1, (side, side), "a.png")
    dataset = large(tmp_path, (side, side), *[SQUARE] * count)
    with pytest.raises(DataError, match=rf"1.png has {count} objects in 60000 x 60000 pixels .* would take [\d.]+ GB of memory"):
        dataset[0]


# ---- Names of categories ----


def test_categories_of_one_name_are_told_apart_and_that_is_said_once(tmp_path, caplog):
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
    with caplog.at_level(logging.WARNING, "jaxseg"):
        dataset = opened(tmp_path, json.dumps(content(categories=categories)))
    assert dataset.class_names == ("cat (id 3)", "dog", "cat (id 7)")
    assert [record.message.count("several categories of one name") for record in caplog.records] == [1]
    names = {"category_ids": (3, 5), "class_names": ("cat (id 3)", "dog")}
    assert opened(tmp_path, json.dumps(content(categories=categories)), **names).class_names == names["class_names"]
    with pytest.raises(DataError, match=r"calls category 3 'cat \(id 3\)'"):
        opened(tmp_path, json.dumps(content(categories=categories)), **{**names, "class_names": ("cat", "dog")})


def test_a_category_called_like_another_ones_new_name_is_told_apart_too(tmp_path):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}, {"id": 5, "name": "cat (id 1)"}]
    assert len(set(opened(tmp_path, json.dumps(content(categories=categories))).class_names)) == 3


def test_names_in_shards_are_told_apart_too(tmp_path):
    from jaxseg.data.sources.shapes import write_shapes
    from jaxseg.data.sources.tfds_coco import TfdsDataset, write_shards

    write_shapes(tmp_path, train=2, val=1, size=64)
    shards = write_shards(override(Config(model=YolactConfig()), {"data.root": str(tmp_path), "model.num_classes": 4}), tmp_path / "shards")
    metadata = json.loads((shards / "metadata.json").read_text())
    (shards / "metadata.json").write_text(json.dumps({**metadata, "class_names": ["a", "b", "b", "c"]}))
    assert TfdsDataset(tmp_path / "shards", "train").class_names == ("a", "b (id 2)", "b (id 4)", "c")


# ---- The messages and their number ----


def test_the_message_names_the_first_of_each_reason(tmp_path, caplog):
    bad_rle = annotation(id=17, image_id=5, segmentation={"size": [1, 1], "counts": [1]})
    nameless = {key: value for key, value in annotation(iscrowd=2).items() if key != "id"}
    entries = [annotation(), 7, bad_rle, nameless, bad_rle, annotation(id=4, image_id=6)]
    with caplog.at_level(logging.WARNING, "jaxseg"):
        dataset = CocoDataset(*write_dataset(tmp_path, entries, [image_entry(1), image_entry(5)]))
    (message,) = [record.message for record in caplog.records]
    assert "2 annotations whose RLE does not fit the image (the first: annotation 17 of image 5)" in message
    assert "neither 0 nor 1 (the first: annotations[3] of image 1)" in message
    assert "64 bits (the first: annotations[1])" in message
    assert "not in images (the first: annotation 4 of image 6)" in message
    assert dataset.skipped["annotations whose RLE does not fit the image"] == 2


def test_classes_come_from_images_that_are_open_already(tmp_path, monkeypatch):
    write_dataset(tmp_path, [annotation()])
    names = {f"data.{split}_{what}": name for split in ("train", "val") for what, name in (("annotations", "a.json"), ("images", "images"))}
    config = override(Config(model=YolactConfig()), {"data.root": str(tmp_path), "model.num_classes": 3, **names})
    dataset = open_dataset(config, "train")
    monkeypatch.setattr(coco_module, "open_dataset", None)
    assert resolve_classes(config, dataset).data.class_names == ("two", "five", "nine")


# ---- Paths ----


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "x" * 5000])
def test_a_path_that_no_file_can_have_is_refused_in_a_sentence(tmp_path, name):
    annotations, images = write_dataset(tmp_path, [annotation()])
    for paths in ((name, images), (annotations, name)):
        with pytest.raises(DataError) as error:
            CocoDataset(*paths)
        str(error.value).encode()
        assert "\0" not in str(error.value)
    with pytest.raises(DataError):
        open_dataset(_with_root(name), "train")


def _with_root(root: str) -> Config:
    """Makes a configuration without the checks of `load_config`, as a caller can."""
    return dataclasses.replace(Config(model=YolactConfig()), data=dataclasses.replace(Config(model=YolactConfig()).data, root=root))


def test_a_folder_is_no_annotation_file_and_a_file_no_image_folder(tmp_path):
    annotations, images = write_dataset(tmp_path, [annotation()])
    with pytest.raises(DataError, match=r"annotation file cannot be .*, which is no file"):
        CocoDataset(images, images)
    with pytest.raises(DataError, match=r"image folder cannot be .*, which is no folder"):
        CocoDataset(annotations, annotations)


def test_a_home_folder_that_is_not_there_is_told():
    with pytest.raises(DataError, match="no home folder"):
        open_dataset(override(Config(model=YolactConfig()), {"data.root": "~nobody_of_this_name/coco"}), "train")


@pytest.mark.parametrize("method", ["open", "exists"])
def test_a_file_that_nobody_may_read_is_told(tmp_path, monkeypatch, method):
    paths = write_dataset(tmp_path, [annotation()])

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied"):
        CocoDataset(*paths)
