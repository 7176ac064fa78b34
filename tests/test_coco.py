"""The reader of COCO files: masks, boxes and classes, and the files that a configuration names."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tiny_coco import HEIGHT, SQUARE, WIDTH, annotation, compressed, image_entry, open_one, uncompressed, write_dataset

from jaxseg.config import Config, ConfigError, override
from jaxseg.data.sources.coco.run_lengths import run_lengths
from jaxseg.data.sources.from_config import CocoDataset, DataError, open_dataset, resolve_classes, resolve_root
from jaxseg.models import YolactConfig

# ---- The content of the files ----


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
    # Classes are numbered in ascending order of category id, 2, 5, 9; a crowd keeps its class.
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
    """Two decimals are stored in 16 bits, but other coordinates must not be rounded.

    These are coordinates with more decimals, or outside of the image.
    """
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
    # Ids start at 1, because pycocotools takes a match with annotation 0 for no match.
    assert sorted(reference.anns) == [1, 2]
    assert reference.anns[1]["bbox"] == [2.0, 3.0, 10.0, 10.0]
    assert (reference.anns[2]["iscrowd"], reference.anns[2]["category_id"]) == (1, 5)
    # The area is that of the file, or that of the mask if the file has none.
    assert [reference.anns[k]["area"] for k in (1, 2)] == [100.0, mask.sum()]
    np.testing.assert_array_equal(reference.annToMask(reference.anns[2]), mask)
    assert reference.cats[5]["name"] == "five"


def test_a_pickled_dataset_is_small_and_the_same(tmp_path):
    dataset = open_one(tmp_path, *[annotation(segmentation=[(np.array(SQUARE[0] * 25) + i % 5).tolist()]) for i in range(1000)])
    pickled = pickle.dumps(dataset)
    # An object has 200 coordinates of 2 bytes, and one row of other data.
    assert len(pickled) < 1000 * 550
    np.testing.assert_array_equal(pickle.loads(pickled)[0].masks, dataset[0].masks)


def test_an_index_beyond_the_end_stops_an_iteration(tmp_path):
    assert len(list(open_one(tmp_path, annotation()))) == 1


def test_run_lengths_are_those_pycocotools_reads(mask):
    rng = np.random.default_rng(0)
    for picture in (mask, np.zeros_like(mask), np.ones_like(mask), rng.integers(0, 2, (97, 301), dtype=np.uint8)):
        assert run_lengths(compressed(picture)["counts"].encode()).tolist() == uncompressed(picture)["counts"]


def test_images_may_lie_in_subfolders(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    dataset = CocoDataset(*write_dataset(tmp_path, [annotation()], [image_entry(file_name="a/1.png")]))
    assert dataset[0].image.shape == (HEIGHT, WIDTH, 3)


# ---- The files that a configuration names ----


def test_without_coco_one_sentence_says_where_how_and_what_instead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXSEG_DATA", raising=False)
    with pytest.raises(DataError) as error:
        open_dataset(Config(model=YolactConfig()), "train")
    message = str(error.value)
    assert str(tmp_path / "data" / "coco" / "annotations" / "instances_train2017.json") in message
    assert "http://images.cocodataset.org/zips/train2017.zip" in message
    assert "annotations_trainval2017.zip" in message
    assert "$JAXSEG_DATA" in message
    assert "python train.py --config configs/demo_shapes.py" in message
    assert "\n" not in message


def test_a_missing_own_dataset_names_the_field(tmp_path):
    config = override(Config(model=YolactConfig()), {"data.root": str(tmp_path), "data.val_annotations": "mine.json"})
    with pytest.raises(DataError, match=r"mine.json, which data.val_annotations"):
        open_dataset(config, "val")


def test_the_root_is_the_config_then_the_environment_then_data_coco(monkeypatch):
    monkeypatch.setenv("JAXSEG_DATA", "elsewhere")
    assert resolve_root(override(Config(model=YolactConfig()), {"data.root": "here"}).data) == Path("here")
    assert resolve_root(Config(model=YolactConfig()).data) == Path("elsewhere")
    monkeypatch.delenv("JAXSEG_DATA")
    assert resolve_root(Config(model=YolactConfig()).data) == Path("data/coco")


def test_a_config_may_use_some_of_the_categories(tmp_path):
    dataset = open_one(tmp_path, annotation(category_id=9), annotation(category_id=2), category_ids=(5, 9), class_names=("five", "nine"))
    assert dataset.objects(0).classes.tolist() == [1]
    assert dataset.skipped == {"annotations of a category that the config leaves out": 1}


@pytest.fixture
def own_dataset(tmp_path) -> Config:
    write_dataset(tmp_path, [annotation(image_id=2)], [image_entry(1), image_entry(2)])
    changes = {"data.root": tmp_path.as_posix(), "model.num_classes": 3}
    changes |= {f"data.{split}_annotations": "a.json" for split in ("train", "val")}
    changes |= {f"data.{split}_images": "images" for split in ("train", "val")}
    return override(Config(model=YolactConfig()), changes)


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
