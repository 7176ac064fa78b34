"""The split of one instance file into two: nothing is lost, and nothing is in both files.

Each error of the user is explained in one sentence.
"""

import json
import os

import pytest

from jaxseg.commands.split import main
from jaxseg.data.sources.from_config import CocoDataset
from jaxseg.data.sources.shapes import write_shapes

IMAGES = 20


@pytest.fixture
def content() -> dict:
    """Returns twenty images of two objects each; category 9 has one object, and 11 has none."""
    images = [{"id": 100 - i, "file_name": f"{i}.jpg", "height": 10, "width": 10} for i in range(IMAGES)]
    annotations = [
        {"id": 2 * i + k, "image_id": 100 - i, "category_id": 3 + k, "bbox": [0, 0, 5, 5]} for i in range(IMAGES) for k in range(2)
    ]
    annotations.append({"id": 99, "image_id": 100, "category_id": 9, "bbox": [0, 0, 5, 5]})
    categories = [{"id": number, "name": f"thing {number}"} for number in (3, 4, 9, 11)]
    return {"info": {"year": 2026}, "licenses": [1], "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def path(tmp_path, content):
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    return path


def parts(folder) -> tuple[dict, dict]:
    train, val = (json.loads((folder / f"all_{name}.json").read_text()) for name in ("train", "val"))
    return train, val


@pytest.mark.parametrize(("val", "count"), [("0.25", 5), ("5", 5), ("0.0001", 1), ("0.9999", 19), ("1", 1), ("19", 19)])
def test_every_image_and_its_objects_are_in_one_part(path, content, val, count, capsys):
    assert main([str(path), "--val", val]) == 0
    train, validation = parts(path.parent)
    assert len(validation["images"]) == count
    for part in (train, validation):
        assert [part[key] for key in ("info", "licenses", "categories")] == [content[key] for key in ("info", "licenses", "categories")]
        ids = [image["id"] for image in part["images"]]
        assert ids == sorted(ids, reverse=True)
        assert part["annotations"] == [entry for entry in content["annotations"] if entry["image_id"] in ids]
    assert sorted(image["id"] for part in (train, validation) for image in part["images"]) == list(range(81, 101))
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{path.parent / 'all_train.json'}: {IMAGES - count} image")
    assert out[1] == (f"{path.parent / 'all_val.json'}: {count} image{'s' * (count > 1)}, {len(validation['annotations'])} objects")


def test_the_seed_decides(path, tmp_path):
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main([str(path), "--val", "0.5", "--seed", seed, "--output", str(tmp_path / "made" / folder)]) == 0
    a, b, c = (parts(tmp_path / "made" / folder) for folder in "abc")
    assert a == b != c


def test_a_category_without_objects_in_a_part_is_told(path, capsys):
    assert main([str(path), "--val", "1", "--seed", "0"]) == 0
    in_val = any(image["id"] == 100 for image in parts(path.parent)[1]["images"])
    assert capsys.readouterr().err == (
        f"The category 'thing 9' has 1 object in the file, but none in the {'train' if in_val else 'val'} part.\n"
    )


def test_annotations_of_no_image_are_told(path, content, capsys):
    content["annotations"].append({"image_id": 5, "category_id": 3})
    path.write_text(json.dumps(content))
    assert main([str(path), "--val", "10"]) == 0
    assert "Left out of both parts: 1 annotation with the image_id of no image.\n" in capsys.readouterr().err
    assert sum(len(part["annotations"]) for part in parts(path.parent)) == len(content["annotations"]) - 1


def test_what_is_there_is_replaced_only_when_asked(path, capsys):
    (path.parent / "all_val.json").write_text("mine")
    assert main([str(path), "--val", "0.5"]) == 2
    assert capsys.readouterr().err == (
        f"ConfigError: {path.parent / 'all_val.json'} exists already; choose another --output folder, or say --overwrite.\n"
    )
    assert (path.parent / "all_val.json").read_text() == "mine"
    assert not (path.parent / "all_train.json").exists()
    assert main([str(path), "--val", "0.5", "--overwrite"]) == 0
    assert len(parts(path.parent)[1]["images"]) == 10


def test_the_parts_open_as_datasets(tmp_path):
    write_shapes(tmp_path, train=6, val=0, size=64)
    folder = tmp_path / "annotations"
    assert main([str(folder / "instances_train2017.json"), "--val", "2"]) == 0
    sizes = [len(CocoDataset(folder / f"instances_train2017_{part}.json", tmp_path / "train2017")) for part in ("train", "val")]
    assert sizes == [4, 2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--val", "0"],
            "ConfigError: --val '0' is out of range; it must be a share between 0 and 1, or a whole number of images from 1 to 19.",
        ),
        (["--val", "20"], "ConfigError: --val '20' is out of range"),
        (["--val", "1.5"], "ConfigError: --val '1.5' is out of range"),
        (["--val", "nan"], "ConfigError: --val 'nan' is out of range"),
        (["--val", "some"], "ConfigError: --val 'some' is out of range"),
        (["--val", "9" * 5000], "ConfigError: --val '9999"),
        (["--val", "0.1", "--seed", "-1"], "ConfigError: --seed -1 is out of range; it must be 0 or more."),
        (["--val", "0.1", "--output", "ALL"], "cannot be made a folder (File exists); choose another."),
        (["--val", "0.1", "--output", "ALL/deeper"], "cannot be made a folder (Not a directory); choose another."),
        (["--val", "0.1", "--output", "a\0b"], r"ConfigError: --output 'a\x00b' is no name that a folder can have."),
        (["--val", "0.1", "--output", "a\ud800b"], r"ConfigError: --output 'a\ud800b' is no name that a folder can have."),
    ],
)
def test_wrong_arguments_are_one_sentence(path, arguments, sentence, capsys):
    assert main([str(path), *(argument.replace("ALL", str(path)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert os.listdir(path.parent) == ["all.json"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: [], "holds a list, not an object with images, annotations, categories."),
        (lambda content: content.pop("images") and content, "has no list images; it must have the lists images, annotations, categories."),
        (lambda content: {**content, "annotations": {}}, "has no list annotations"),
        (lambda content: {**content, "categories": None}, "has no list categories"),
        (lambda content: {**content, "images": [7]}, "images[0] of PATH is 7; it must be an object with id."),
        (lambda content: {**content, "images": [{"id": "a"}]}, "images[0] of PATH has the id 'a'; it must be a whole number."),
        (lambda content: {**content, "images": [{"id": True}]}, "images[0] of PATH has the id True; it must be a whole number."),
        (lambda content: {**content, "images": 2 * [{"id": 5}]}, "has several images with the id 5; the ids of images must be distinct."),
        (lambda content: {**content, "images": []}, "There is nothing to split: the file has 0 images"),
        (
            lambda content: {**content, "annotations": [None]},
            "annotations[0] of PATH is None; it must be an object with image_id and category_id.",
        ),
        (lambda content: {**content, "annotations": [{"image_id": 100}]}, "annotations[0] of PATH has the category_id None"),
        (lambda content: {**content, "annotations": [{"image_id": [1]}]}, "annotations[0] of PATH has the image_id [1]"),
        (lambda content: {**content, "categories": [{"name": "a"}]}, "categories[0] of PATH has the id None; it must be a whole number."),
    ],
)
def test_a_wrong_file_is_one_sentence(path, content, change, sentence, capsys):
    path.write_text(json.dumps(change(content)))
    assert main([str(path), "--val", "0.5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("DataError: ")
    assert sentence.replace("PATH", str(path)) in error
    assert error.count("\n") == 1
    assert os.listdir(path.parent) == ["all.json"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("none.json", "cannot be read: No such file"), ("", "cannot be read: Is a directory"), ("a\0b", "is no name that a file can have")],
)
def test_no_file_is_one_sentence(tmp_path, name, sentence, capsys):
    assert main([str(tmp_path / name), "--val", "0.5"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_sentence(path, monkeypatch, capsys):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxseg.files.os.fsync", full)
    assert main([str(path), "--val", "0.5"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"OSError: No space left on device: {path.parent / 'all_val.json'}.\n"
    assert captured.out == ""
    assert os.listdir(path.parent) == ["all.json"]
