"""The synthetic shapes: valid COCO files that depend only on the seed and are never incomplete."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from jaxseg.config import load_config, override
from jaxseg.data.sources import shapes
from jaxseg.data.sources.from_config import CocoDataset, DataError, open_dataset
from jaxseg.data.sources.shapes import CATEGORIES, ensure_shapes, write_shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=60, val=5, size=96)
    return root


def open_split(root, name: str = "train2017") -> CocoDataset:
    return CocoDataset(root / "annotations" / f"instances_{name}.json", root / name)


def test_the_reader_finds_nothing_to_skip(root):
    dataset = open_split(root)
    assert len(dataset) == 60
    assert not dataset.skipped
    assert dataset.class_names == ("circle", "rectangle", "triangle", "star")
    assert dataset.category_ids == tuple(CATEGORIES) == (1, 2, 4, 7)
    assert len(open_split(root, "val2017")) == 5


def test_images_and_objects_vary(root):
    samples = list(open_split(root))
    sides = np.array([sample.image.shape[:2] for sample in samples])
    assert sides.min() >= 72
    assert sides.max() <= 120
    assert len(np.unique(sides)) > 10
    assert set(np.concatenate([sample.classes for sample in samples]).tolist()) == {0, 1, 2, 3}
    areas = np.concatenate([sample.masks.sum(axis=(1, 2)) for sample in samples])
    assert areas.min() < 150
    assert areas.max() > 2500
    assert np.mean([sample.image.std() for sample in samples]) > 10


def test_every_mask_form_is_there(root):
    entries = json.loads((root / "annotations" / "instances_train2017.json").read_text())["annotations"]
    crowds = [entry for entry in entries if entry["iscrowd"]]
    assert 1 <= len(crowds) < 12
    assert all(isinstance(entry["segmentation"]["counts"], list) for entry in crowds)
    forms = [type(entry["segmentation"]) for entry in entries if not entry["iscrowd"]]
    assert forms.count(list) > 30
    assert forms.count(dict) > 30


def test_masks_are_the_visible_part_inside_their_box(root):
    overlaps = 0
    for sample in open_split(root):
        masks = sample.masks.astype(bool)
        # Polygons cover a border of pixels more than the drawn shapes; masks overlap only there.
        shared = (masks.sum(axis=0) > 1).sum()
        assert shared <= 0.08 * masks.sum() + 8
        for mask, box in zip(masks, sample.boxes, strict=True):
            ys, xs = np.nonzero(mask)
            np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], box, atol=1.5)
        boxes = sample.boxes
        overlaps += sum(
            bool((np.maximum(boxes[i, :2], boxes[j, :2]) < np.minimum(boxes[i, 2:], boxes[j, 2:])).all())
            for i in range(len(boxes))
            for j in range(i)
        )
    assert overlaps > 20


def test_a_shape_differs_from_its_background(root):
    """The shapes can be learnt, because the colour inside a mask differs from that around it."""
    distances = []
    for sample in open_split(root):
        outside = sample.image[~sample.masks.any(axis=0)].mean(axis=0)
        distances += [np.abs(sample.image[mask.astype(bool)].mean(axis=0) - outside).max() for mask in sample.masks]
    assert np.median(distances) > 40


def test_the_same_seed_gives_the_same_files_and_another_seed_others(root, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        write_shapes(tmp_path / name, train=3, val=0, size=96, seed=seed)
    first, again, other = ((folder / "train2017" / "000002.jpg").read_bytes() for folder in (root, tmp_path / "again", tmp_path / "other"))
    assert first == again != other
    # Training and validation images are also different.
    assert first != (root / "val2017" / "000002.jpg").read_bytes()


def test_ensure_writes_once(tmp_path):
    ensure_shapes(tmp_path / "a" / "shapes", train=2, val=1, size=64)
    assert len(open_split(tmp_path / "a" / "shapes")) == 2
    # No temporary files are left beside the folder.
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["shapes"]
    ensure_shapes(tmp_path / "a" / "shapes", train=9, val=1, size=64)
    assert len(open_split(tmp_path / "a" / "shapes")) == 2


def test_a_killed_run_leaves_no_half_dataset(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_image", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure_shapes(tmp_path / "shapes", train=2, val=1)
    assert not list(tmp_path.iterdir())


def test_several_processes_may_start_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ensure_shapes, args=(tmp_path / "shapes",), kwargs={"train": 20, "val": 2}) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert len(open_split(tmp_path / "shapes")) == 20


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"cannot be written to .*shapes"):
        ensure_shapes(tmp_path / "shapes", train=1, val=1)
    assert (tmp_path / "shapes" / "mine.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    for root in (tmp_path / "file", tmp_path / "file" / "shapes", tmp_path / "file" / "deeper" / "shapes"):
        with pytest.raises(DataError, match=r"shapes cannot be written to .*(: (Not a directory|File exists)|which is a file .*)\.$"):
            ensure_shapes(root, train=1, val=1, size=64)
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(DataError, match=r"cannot be written to '.*', which is no name that a folder can have\.$"):
            ensure_shapes(tmp_path / name / "shapes", train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_no_half_dataset(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"The synthetic shapes cannot be written to .*shapes: No space left on device\."):
        ensure_shapes(tmp_path / "shapes", train=2, val=1, size=64)
    assert not list(tmp_path.iterdir())


def test_anybody_may_read_what_is_written(tmp_path):
    ensure_shapes(tmp_path / "shapes", train=1, val=1, size=64)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "shapes").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_demo_config_writes_its_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseg.data.sources.coco.files.ensure_shapes", lambda root: write_shapes(root, train=2, val=1))
    config = override(load_config("configs/demo_shapes.py"), {"data.root": str(tmp_path / "shapes")})
    assert len(open_dataset(config, "train")) == 2
    assert len(open_dataset(config, "val")) == 1
