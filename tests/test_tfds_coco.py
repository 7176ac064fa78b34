"""The TFDS builder and its reader, which return the content of the COCO files bit for bit."""

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from jaxseg.commands.write_shards import main
from jaxseg.config import Config, override
from jaxseg.data.sources.from_config import DataError, open_dataset, resolve_classes
from jaxseg.data.sources.shapes import write_shapes
from jaxseg.data.sources.tfds_coco import write_shards
from jaxseg.models import YolactConfig


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> tuple[Config, Config]:
    """Writes one dataset as COCO files and as shards; each split has an image without objects."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=12, val=4, size=64)
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 2]
        path.write_text(json.dumps(content))
    coco = override(Config(model=YolactConfig()), {"data.root": str(root), "model.num_classes": 4})
    write_shards(coco, root / "shards")
    return coco, override(coco, {"data.root": str(root / "shards"), "data.format": "tfds"})


def assert_same_samples(first, second):
    assert first.polygons == second.polygons
    for field in dataclasses.fields(first):
        if field.name == "polygons":
            continue
        one, two = getattr(first, field.name), getattr(second, field.name)
        np.testing.assert_array_equal(one, two)
        assert np.asarray(one).dtype == np.asarray(two).dtype


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("keep_empty", [False, True])
def test_samples_are_those_of_the_coco_files(configs, split, keep_empty):
    files, shards = (open_dataset(override(config, {"data.keep_empty": keep_empty}), split) for config in configs)
    for name in ("image_ids", "file_names", "category_ids", "class_names", "left_out"):
        assert getattr(files, name) == getattr(shards, name)
    for name in ("picture_sizes", "object_counts"):
        np.testing.assert_array_equal(getattr(files, name), getattr(shards, name))
    assert len(files) == {"train": 12, "val": 4}[split] - (not keep_empty and split == "train")
    for index in range(len(files)):
        assert_same_samples(files[index], shards[index])
        assert files.encoded_image(index) == shards.encoded_image(index)
    assert files.coco_ground_truth() == shards.coco_ground_truth()


def test_real_images_come_out_the_same(coco_mini, tmp_path):
    config = override(Config(model=YolactConfig()), {"data.root": str(coco_mini)})
    write_shards(config, tmp_path)
    files, shards = open_dataset(config, "val"), open_dataset(override(config, {"data.root": str(tmp_path), "data.format": "tfds"}), "val")
    assert len(files) == len(shards) == 50
    for index in range(0, 50, 7):
        assert_same_samples(files[index], shards[index])


def test_an_opened_reader_can_be_sent_to_another_process(configs):
    dataset = open_dataset(configs[1], "train")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 50_000
    assert_same_samples(pickle.loads(pickled)[3], dataset[3])


def test_classes_come_from_the_shards(configs):
    assert resolve_classes(configs[1]).data == dataclasses.replace(
        configs[1].data, class_names=("circle", "rectangle", "triangle", "star"), category_ids=(1, 2, 4, 7)
    )


def test_shards_of_other_classes_are_refused(configs):
    config = override(configs[1], {"model.num_classes": 2, "data.class_names": ("circle", "star"), "data.category_ids": (1, 7)})
    with pytest.raises(DataError, match=r"hold the 4 classes circle, .*--config.model.num_classes=4"):
        open_dataset(config, "train")


def test_missing_shards_are_told_with_the_command_that_writes_them(configs, tmp_path):
    with pytest.raises(DataError, match=r"no shards at .*python -m jaxseg.commands.write_shards"):
        open_dataset(override(configs[1], {"data.root": str(tmp_path)}), "train")


def test_an_image_that_cannot_be_read_stops_the_builder_with_its_name(tmp_path):
    write_shapes(tmp_path, train=2, val=1, size=64)
    (tmp_path / "train2017" / "000002.jpg").unlink()
    (tmp_path / "train2017" / "000002.jpg").mkdir()
    with pytest.raises(DataError, match=r"000002.jpg cannot be read"):
        write_shards(override(Config(model=YolactConfig()), {"data.root": str(tmp_path), "model.num_classes": 4}), tmp_path / "shards")


def test_the_command_writes_shards_once(configs, tmp_path, capsys):
    arguments = ["--config", "configs/demo_shapes.py", "--output", str(tmp_path), f"--config.data.root={configs[0].data.root}"]
    assert main(arguments) == 0
    assert f"--config.data.format=tfds --config.data.root={tmp_path}" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "holds shards already" in capsys.readouterr().err


def test_the_command_tells_a_missing_dataset_in_one_sentence(tmp_path, capsys):
    assert main(["--config", "configs/yolact_r50.py", "--output", str(tmp_path / "o"), f"--config.data.root={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "There is no" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_neither_builder_nor_reader_imports_tensorflow(configs, tmp_path):
    code = (
        "import sys; from jaxseg.commands.write_shards import main\n"
        "from jaxseg.data.sources.tfds_coco import TfdsDataset\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert len(TfdsDataset(sys.argv[4], 'train')[0].boxes)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    arguments = ["--config", "configs/demo_shapes.py", "--output", str(tmp_path), f"--config.data.root={configs[0].data.root}"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
