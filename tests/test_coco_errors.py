"""Errors in COCO files: an annotation is skipped and counted, or the file is refused.

A refusal is explained in one sentence.
"""

import json
import logging
from pathlib import Path

import pytest
from tiny_coco import BAD_ANNOTATIONS, CATEGORIES, SQUARE, WIDTH, annotation, image_entry, open_one, write_dataset

from jaxseg.data.sources.from_config import CocoDataset, DataError

# ---- Single bad annotations are left out, counted and reported ----


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


# ---- A bad structure is refused in one sentence when the file is opened ----


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


def test_a_config_with_other_names_for_the_categories_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"calls category 5 'five', but .* calls it 'cat'.*--config.model.num_classes=3"):
        open_one(tmp_path, annotation(), category_ids=(2, 5), class_names=("two", "cat"))
    with pytest.raises(DataError, match="none of the categories 1, 3"):
        open_one(tmp_path, annotation(), category_ids=(1, 3), class_names=("one", "three"))
