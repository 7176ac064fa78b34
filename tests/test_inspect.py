"""The inspection of a dataset: the counts are right, the pictures are there, the exit code says whether it can be used."""

import json

import cv2
import numpy as np
import pytest

from jaxseg.config import MASKRCNN_BENCHMARK, MIRROR_ONLY, Config, InputConfig, RcnnConfig, load_config, override
from jaxseg.data.coco import open_dataset
from jaxseg.data.inspect import describe, draw_samples, inspect_dataset, main
from jaxseg.data.shapes import write_shapes


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
    """Three images: a good one, one without objects, a broken one."""
    (tmp_path / "images").mkdir()
    for name in ("good", "empty", "broken"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((150, 200, 3), 80, np.uint8))
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    entries = [
        annotation(1, 4, [0, 0, 10, 10]),
        annotation(1, 4, [20, 0, 40, 40]),
        annotation(1, 7, [60, 0, 120, 120]),
        annotation(1, 7, [60, 0, 120, 120], iscrowd=1),
        # Reaches over the right edge.
        annotation(1, 7, [190, 10, 20, 20]),
        # Smaller than a pixel: no pixel centre in it.
        annotation(3, 7, [5, 5, 1, 1], segmentation=[[5.1, 5.1, 5.2, 5.1, 5.2, 5.15]]),
        annotation(3, 7, [5, 5, 0, 0]),
    ]
    names = ("good", "empty", "broken")
    images = [{"id": i, "file_name": f"{name}.png", "height": 150, "width": 200} for i, name in enumerate(names, 1)]
    categories = [{"id": 4, "name": "dot"}, {"id": 7, "name": "block"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    changes = {"data.root": str(tmp_path), "model.num_classes": 2, "model.image_size": 64, "data.max_objects": 4}
    changes |= {f"data.{split}_annotations": "a.json" for split in ("train", "val")}
    return override(Config(), changes | {f"data.{split}_images": "images" for split in ("train", "val")})


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
    assert "skipped at opening: 1 annotations whose bbox has no area, is not finite, or lies outside the image" in lines


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_show_readable_images_only(config, tmp_path, split):
    written = draw_samples(config, open_dataset(config, split), split, 5, tmp_path / "pictures")
    expected = {"train": {"train_1.jpg"}, "val": {"val_1.jpg", "val_2.jpg"}}[split]
    assert {path.name for path in written} == expected == {path.name for path in (tmp_path / "pictures").iterdir()}
    assert all(cv2.imread(str(path)).std() >= 0 for path in written)


def test_a_validation_picture_shows_the_object_where_it_is(config, tmp_path):
    (path,) = (p for p in draw_samples(config, open_dataset(config, "val"), "val", 5, tmp_path / "p") if p.name == "val_1.jpg")
    picture = cv2.imread(str(path)).astype(int)
    height, width = picture.shape[:2]
    # Left below everything: the grey of the file. In the block: its colour over the grey.
    assert np.abs(picture[int(0.9 * height), int(0.1 * width)] - 80).max() < 12
    assert np.abs(picture[int(0.4 * height), int(0.6 * width)] - 80).max() > 25


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_of_an_input_that_keeps_proportions(config, tmp_path, split):
    """150 x 200 become 72 x 96 in an input of 96 x 96: padding is black, and the large object lies where it should, mirrored or not."""
    model = RcnnConfig(num_classes=2, input=InputConfig((72,), 96, ((96, 96),)), conventions=MASKRCNN_BENCHMARK)
    config = override(config, {"model": model, "data.augment": MIRROR_ONLY})
    (path,) = (p for p in draw_samples(config, open_dataset(config, split), split, 5, tmp_path / "p") if p.name == f"{split}_1.jpg")
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
    assert main(["--config", "configs/demo_shapes.py", f"--config.data.root={tmp_path}", "--split", "train"]) == 1
    assert "None of the 2 train images can be read; the first: 000001.jpg" in capsys.readouterr().out


def test_the_command_returns_2_for_a_wrong_config(capsys):
    assert main(["--config", "configs/none.py"]) == 2
    assert "There is no config file configs/none.py" in capsys.readouterr().err


def test_the_demo_dataset_fits_its_config():
    assert load_config("configs/demo_shapes.py").data.max_objects >= 7
