"""A detector from outside of jaxseg works like its own ones, without changes to jaxseg."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from outside_detector import NAMES, GridConfig, GridDetector
from tiny_coco import write_dataset

import jaxseg
from jaxseg.commands import evaluate as evaluate_command
from jaxseg.commands import train as train_command

CONFIG_FILE = """
from outside_detector import GridConfig

from jaxseg.config import MIRROR_ONLY, Config, DataConfig, TrainConfig


def get_config():
    return Config(
        name="grid",
        model=GridConfig(num_classes=3),
        data=DataConfig(
            root={root!r},
            train_annotations="a.json",
            train_images="images",
            val_annotations="a.json",
            val_images="images",
            class_names=(),
            category_ids=(),
            max_objects=4,
            workers=0,
            augment=MIRROR_ONLY,
        ),
        train=TrainConfig(batch_size=2, steps=4, checkpoint_every=2, log_every=1, evaluate_every=4, warmup_steps=0),
    )
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Writes a configuration of the detector, with two pictures for training."""
    square = {"iscrowd": 0, "area": 100.0, "bbox": [2.0, 3.0, 10.0, 10.0], "segmentation": [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]}
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (1, 2)]
    annotations = [{"id": i, "image_id": i, "category_id": category, **square} for i, category in ((1, 2), (2, 9))]
    write_dataset(tmp_path, annotations, images)
    path = tmp_path / "grid.py"
    path.write_text(CONFIG_FILE.format(root=str(tmp_path)))
    return path


def train(config_file: Path, run: Path, *flags: str) -> int:
    return train_command.main(["--config", str(config_file), "--workdir", str(run), *flags])


def test_a_detector_from_outside_trains_resumes_evaluates_and_predicts(config_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(config_file, run) == 0
    assert json.loads((run / "config.json").read_text())["model"]["kind"] == "grid"

    assert train(config_file, run, "--config.train.steps=6", "--config.model.score_threshold=0.02") == 0
    assert "model.score_threshold: 0.05 -> 0.02" in capsys.readouterr().out
    assert train(config_file, run, "--config.model.width=16") == 2
    assert "holds a run with another model.width" in capsys.readouterr().err

    assert evaluate_command.main(["--checkpoint", str(run), "--output", str(tmp_path / "results")]) == 0
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert {"box/AP", "mask/AP"} <= set(metrics)

    pictures, drawn = str(tmp_path / "images"), tmp_path / "drawn"
    assert evaluate_command.main(["--checkpoint", str(run), "--images", pictures, "--output", str(drawn), "--score_threshold", "0"]) == 0
    entries = json.loads((drawn / "detections.json").read_text())["images"]
    assert [len(entry["detections"]) > 0 for entry in entries] == [True, True]

    assert evaluate_command.main(["--checkpoint", str(run), "--nms", "fast"]) == 2
    assert "config.model.kind = 'grid' knows one rule only" in capsys.readouterr().err


def test_weights_load_by_the_names_that_a_detector_from_outside_registers(config_file):
    config = jaxseg.load_config(config_file)
    model = jaxseg.build_model(config)
    assert isinstance(model, GridDetector)
    variables = jaxseg.init_variables(model, config, seed=3)
    theirs = {}
    for ours, name in NAMES.items():
        theirs[f"{name}.weight"] = np.asarray(variables["params"][ours]["kernel"]).transpose(3, 2, 0, 1)
        theirs[f"{name}.bias"] = np.asarray(variables["params"][ours]["bias"])
    loaded = jaxseg.load_weights(theirs, config)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])


def test_a_kind_that_was_not_imported_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "x", "model": {"kind": "solov9"}}))
    with pytest.raises(jaxseg.ConfigError, match=r"model.kind = 'solov9' is not one of .*'yolact'.*--config FILE\) that imports it"):
        jaxseg.load_config(tmp_path / "config.json")


def test_a_second_detector_of_the_same_kind_is_refused():
    with pytest.raises(TypeError, match="OtherConfig and GridConfig both call their kind of model 'grid'"):
        type("OtherConfig", (jaxseg.config.ModelConfig,), {"kind": "grid"})
    assert jaxseg.config.ModelConfig.kinds()["grid"] is GridConfig
