"""The inspection of a dataset: its counts, its pictures and its result.

There are also tests of the exit codes of commands that read datasets or write weights.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxseg.commands import convert, export_torch, inspect, split, write_shards
from jaxseg.commands.inspect import main
from jaxseg.config import MIRROR_ONLY, Config, load_config, override
from jaxseg.data.inspection import check_usable, describe, draw_samples, inspect_dataset
from jaxseg.data.sources.coco.files import open_coco_files
from jaxseg.data.sources.from_config import DataError, open_dataset
from jaxseg.data.sources.shapes import write_shapes
from jaxseg.models import MASKRCNN_BENCHMARK, InputConfig, RcnnConfig, YolactConfig


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(image: int, category: int, box: list[float], segmentation=None, **changes) -> dict:
    area = box[2] * box[3]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "segmentation": segmentation or square(*box[:3]),
        **changes,
    }


@pytest.fixture
def config(tmp_path) -> Config:
    """Makes a dataset of three images: a good one, one without objects, and a broken one."""
    (tmp_path / "images").mkdir()
    for name in ("good", "empty", "broken"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((150, 200, 3), 80, np.uint8))
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    entries = [
        annotation(1, 4, [0, 0, 10, 10]),
        annotation(1, 4, [20, 0, 40, 40]),
        annotation(1, 7, [60, 0, 120, 120]),
        annotation(1, 7, [60, 0, 120, 120], iscrowd=1),
        # This box extends beyond the right edge.
        annotation(1, 7, [190, 10, 20, 20]),
        # This object is smaller than a pixel and contains no pixel centre.
        annotation(3, 7, [5, 5, 1, 1], segmentation=[[5.1, 5.1, 5.2, 5.1, 5.2, 5.15]]),
        annotation(3, 7, [5, 5, 0, 0]),
    ]
    names = ("good", "empty", "broken")
    images = [{"id": i, "file_name": f"{name}.png", "height": 150, "width": 200} for i, name in enumerate(names, 1)]
    categories = [{"id": 4, "name": "dot"}, {"id": 7, "name": "block"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    changes = {"data.root": str(tmp_path), "model.num_classes": 2, "model.image_size": 64, "data.max_objects": 4}
    changes |= {f"data.{split}_annotations": "a.json" for split in ("train", "val")}
    return override(Config(model=YolactConfig()), changes | {f"data.{split}_images": "images" for split in ("train", "val")})


def test_everything_is_counted(config):
    report = inspect_dataset(open_dataset(config, "val"), max_objects=4)
    assert report.images == 3
    assert report.objects.tolist() == [2, 3]
    assert report.crowds.tolist() == [0, 1]
    assert report.sizes == {"small": 3, "medium": 1, "large": 1}
    assert (report.without_objects, report.too_many, report.most_objects) == (1, 1, 5)
    assert (report.boxes_outside, report.empty_masks) == (1, 1)
    assert [problem.split(" ")[0] for problem in report.broken] == ["broken.png"]


def test_the_text_tells_it_all(config):
    dataset = open_dataset(config, "train")
    text = describe(inspect_dataset(dataset, 4), dataset, 4)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "4 dot 2 0" in lines
    assert "7 block 3 1" in lines
    assert "all 5 1" in lines
    assert "images: 2, of which 0 without objects; 1 more without objects are left out (data.keep_empty keeps them)" in lines
    assert "images with more objects than data.max_objects = 4: 1 (the fullest has 5)" in lines
    assert "broken images: 1" in lines
    assert "empty masks: 1 of 6 (warning: they have no pixel; polygons must be in pixels, not in fractions of the image" in text
    assert "skipped at opening: 1 annotations whose bbox has no area, is not finite, or lies outside the image" in lines


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_show_readable_images_only(config, tmp_path, split):
    (tmp_path / "pictures").mkdir()
    written = draw_samples(config, open_dataset(config, split), split, 5, tmp_path / "pictures")
    expected = {"train": {"train_1.jpg"}, "val": {"val_1.jpg", "val_2.jpg"}}[split]
    assert {path.name for path in written} == expected == {path.name for path in (tmp_path / "pictures").iterdir()}
    assert all(cv2.imread(str(path)).std() >= 0 for path in written)


def test_a_validation_picture_shows_the_object_where_it_is(config, tmp_path):
    (path,) = (p for p in draw_samples(config, open_dataset(config, "val"), "val", 5, tmp_path) if p.name == "val_1.jpg")
    picture = cv2.imread(str(path)).astype(int)
    height, width = picture.shape[:2]
    # The lower left part keeps the grey of the file; the block has its colour over the grey.
    assert np.abs(picture[int(0.9 * height), int(0.1 * width)] - 80).max() < 12
    assert np.abs(picture[int(0.4 * height), int(0.6 * width)] - 80).max() > 25


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_of_an_input_that_keeps_proportions(config, tmp_path, split):
    """150 x 200 pixels become 72 x 96 in an input of 96 x 96, and the padding is black."""
    model = RcnnConfig(num_classes=2, input=InputConfig((72,), 96, ((96, 96),)), conventions=MASKRCNN_BENCHMARK)
    config = override(config, {"model": model, "data.augment": MIRROR_ONLY})
    (path,) = (p for p in draw_samples(config, open_dataset(config, split), split, 5, tmp_path) if p.name == f"{split}_1.jpg")
    picture = cv2.imread(str(path)).astype(int)
    assert picture.shape == (480, 480, 3)
    picture = picture[2::5, 2::5]
    assert picture[78:].max() < 12
    changed = np.abs(picture[:72] - 80).max(axis=2) > 25
    columns = [changed[30:50, 36 : 36 + 40].mean(), changed[30:50, 20 : 20 + 40].mean()]
    assert max(columns) > 0.9
    assert columns[0] > 0.9 or split == "train"


def test_the_command_ends_with_a_sentence_and_0(tmp_path, capsys):
    write_shapes(tmp_path / "shapes", train=4, val=3, size=64)
    arguments = ["--config", "configs/demo_shapes.py", f"--config.data.root={tmp_path / 'shapes'}", "--output", str(tmp_path / "o")]
    assert main([*arguments, "--pictures", "2"]) == 0
    assert capsys.readouterr().out.endswith("\nThe dataset can be used: 4 train images and 3 val images.\n")
    assert len(list((tmp_path / "o").iterdir())) == 4
    assert main([*arguments, "--pictures", "0", "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\nThe dataset can be used: 3 val images.\n")
    assert "\ntrain\n" not in out


def test_the_command_returns_1_for_a_dataset_that_cannot_be_used(tmp_path, capsys):
    assert main(["--config", "configs/yolact_r50.py", f"--config.data.root={tmp_path}"]) == 1
    assert capsys.readouterr().out.startswith("\nThe dataset cannot be used: There is no ")


def test_the_command_returns_1_when_no_image_can_be_read(tmp_path, capsys):
    write_shapes(tmp_path, train=2, val=1, size=64)
    for path in (tmp_path / "train2017").iterdir():
        path.write_bytes(b"")
    assert main(["--config", "configs/demo_shapes.py", f"--config.data.root={tmp_path}", "--split", "train", "--pictures", "0"]) == 1
    assert "None of the 2 train images can be read; the first: 000001.jpg" in capsys.readouterr().out


def test_the_command_returns_2_for_a_wrong_config(capsys):
    assert main(["--config", "configs/none.py"]) == 2
    assert "There is no config file configs/none.py" in capsys.readouterr().err


def write_squares(folder: Path, boxes: list[list[float]], sides: list[float] | None = None) -> list[str]:
    """Writes an image with squares of one class, and returns the arguments that inspect it.

    Masks have the sides of the boxes unless `sides` gives others.
    """
    cv2.imwrite(str(folder / "a.png"), np.full((64, 64, 3), 80, np.uint8))
    image = {"id": 1, "file_name": "a.png", "height": 64, "width": 64}
    entries = [annotation(1, 1, box, square(*box[:2], side)) for box, side in zip(boxes, sides or [box[2] for box in boxes], strict=True)]
    content = {"images": [image], "annotations": entries, "categories": [{"id": 1, "name": "square"}]}
    (folder / "a.json").write_text(json.dumps(content))
    paths = [
        f"--config.data.{split}_{key}={value}" for split in ("train", "val") for key, value in (("annotations", "a.json"), ("images", "."))
    ]
    return [
        "--config",
        "configs/demo_shapes.py",
        "--config.data.synthetic=False",
        f"--config.data.root={folder}",
        "--config.model.num_classes=1",
        *paths,
    ]


@pytest.mark.parametrize("count", [255, 256, 300])
def test_an_image_may_have_very_many_objects(tmp_path, capsys, count):
    """pycocotools cannot compute the areas of 256 masks at once."""
    arguments = write_squares(tmp_path, [[2, 3, 5, 5]] * (count - 1) + [[5.1, 5.1, 0.2, 0.2]])
    assert main([*arguments, "--pictures", "0"]) == 0
    assert f"empty masks: 1 of {count} (warning: " in capsys.readouterr().out


@pytest.mark.parametrize(("sides", "empty"), [([0.2, 0.2], 2), ([0.2, 1.0], 1)])
def test_masks_that_are_all_empty_cannot_be_used(tmp_path, capsys, sides, empty):
    arguments = write_squares(tmp_path, [[20.1, 20.1, 9, 9], [30.1, 30.1, 9, 9]], sides)
    assert main([*arguments, "--pictures", "2", "--output", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().out.endswith(
        f"\nThe dataset cannot be used: None of the 2 masks of the train images has more than one pixel, and {empty} have none; "
        "polygons must be in pixels, not in fractions of the image's width and height.\n"
    )
    assert not list((tmp_path / "o").iterdir())


def test_a_dataset_without_images_cannot_be_used(config):
    report = inspect_dataset(open_dataset(override(config, {"data.limit_images": 1}), "train"), 4)
    report.images = 0
    with pytest.raises(DataError, match=r"There are no train images with objects\."):
        check_usable(report, "train")


def test_the_training_annotations_are_opened_once(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "jaxseg.data.sources.from_config.open_coco_files", lambda config, split: opened.append(split) or open_coco_files(config, split)
    )
    arguments = write_squares(tmp_path, [[10, 10, 20, 20], [10, 10, 0, 20]])
    for flags, expected in (([], ["train", "val"]), (["--split", "train"], ["train"]), (["--split", "val"], ["train", "val"])):
        opened.clear()
        assert main([*arguments, "--pictures", "0", *flags]) == 0
        assert opened == expected
        assert capsys.readouterr().err.count("skipped 1 annotations") == len(opened)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pictures", "-3"], "ConfigError: --pictures -3 is out of range; it must be 0 (none) or more."),
        (["--output", "FILE"], "ConfigError: --output FILE cannot be made a folder (File exists); choose another."),
        (["--output", "FILE/deeper"], "ConfigError: --output FILE/deeper cannot be made a folder (Not a directory); choose another."),
        (["--output", "a\0b"], r"ConfigError: --output 'a\x00b' is no name that a folder can have."),
        (["--output", "a\ud800b"], r"ConfigError: --output 'a\ud800b' is no name that a folder can have."),
        (["--config.data.no=3"], "ConfigError: Unknown config key data.no"),
        (["--config", "configs"], "ConfigError: "),
        (["--config", "a\0b.py"], "ConfigError: "),
        (["--config", "a\ud800b.py"], "ConfigError: "),
    ],
)
def test_a_wrong_command_is_one_sentence_and_2(tmp_path, arguments, sentence, capsys):
    given = write_squares(tmp_path, [[10, 10, 20, 20]])
    assert main([*given, *(argument.replace("FILE", str(tmp_path / "a.png")) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(sentence.replace("FILE", str(tmp_path / "a.png")))
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("root", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("synthetic", [False, True])
def test_a_root_that_no_folder_can_have_is_one_sentence(root, synthetic, capsys):
    arguments = ["--config", "configs/demo_shapes.py", f"--config.data.root={root}", f"--config.data.synthetic={synthetic}"]
    assert main(arguments) in (1, 2)


def test_a_full_disk_leaves_no_claim_of_pictures(tmp_path, capsys, monkeypatch):
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    arguments = write_squares(tmp_path, [[10, 10, 20, 20]])
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([*arguments, "--output", str(tmp_path / "o")]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"OSError: No space left on device: {tmp_path / 'o' / 'train_1.jpg'}.\n"
    assert "pictures of what the model sees" not in captured.out
    assert "can be used" not in captured.out


def test_ctrl_c_is_130(tmp_path, capsys, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxseg.commands.inspect.inspect_dataset", interrupted)
    assert main([*write_squares(tmp_path, [[10, 10, 20, 20]]), "--pictures", "0"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_demo_dataset_fits_its_config():
    assert load_config("configs/demo_shapes.py").data.max_objects >= 7


COMMANDS = {"inspect": inspect, "split": split, "write_shards": write_shards, "convert": convert, "export_torch": export_torch}


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_every_command_with_130(name, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", interrupted)
    assert COMMANDS[name].main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", [write_shards, inspect])
def test_an_output_that_is_a_file_is_one_sentence(command, tmp_path, capfd):
    arguments = write_squares(tmp_path, [[10, 10, 20, 20]])
    assert command.main([*arguments, "--output", str(tmp_path / "a.png")]) == 2
    assert capfd.readouterr().err.count("Error: ") == 1
    assert command.main([*arguments, "--output", "a\0b"]) == 2
    assert capfd.readouterr().err == "ConfigError: --output 'a\\x00b' is no name that a folder can have.\n"


@pytest.mark.parametrize("command", [convert, export_torch])
def test_weights_are_not_written_to_a_name_that_no_file_can_have(command, capsys):
    assert command.main(["in.pth", "a\0b.pth"]) == 2
    assert capsys.readouterr().err == "WeightsError: 'a\\x00b.pth' is no name that a file can have.\n"
