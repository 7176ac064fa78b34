"""Loading weights as variables: the originals' names, strictness, new parameters, and export."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import flax
import jax
import numpy as np
import optax
import pytest
import tiny_training
import tiny_yolact
from goldens import load_arrays
from originals import RUNS, load_run
from rebuilt_weights import yolact_noise, yolact_weights

import jaxseg
from jaxseg.commands import convert, export_torch, train
from jaxseg.commands.evaluate import Options, run
from jaxseg.config import override
from jaxseg.models import BackboneConfig, build_model, init_variables
from jaxseg.training.checkpoint import Checkpoints, save_config
from jaxseg.training.step import create_state
from jaxseg.weights import WeightsError, export, load
from jaxseg.weights.formats.pytorch import write_zip
from jaxseg.weights.formats.readers import read_weights
from jaxseg.weights.load import load_detector, load_weights
from jaxseg.weights.names import torchvision as names_torchvision

REPOSITORY = Path(__file__).parent.parent
DARKNET = override(tiny_yolact.CONFIG, {"model.backbone": BackboneConfig(name="darknet", stage_sizes=(1, 1, 1, 1, 2), width=4)})


def noise(config):
    """Makes variables of noise for a configuration, without compiling anything."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_variables(build_model(config), config))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def variables():
    return tiny_yolact.variables()


@pytest.fixture(scope="module")
def fresh():
    """Returns what a run of the tiny YOLACT without given weights starts with, but for the backbone.

    Each random array takes XLA a third of a second to compile.
    """

    def outside_of_the_backbone():
        variables = init_variables(build_model(tiny_yolact.CONFIG), tiny_yolact.CONFIG, tiny_yolact.CONFIG.train.seed)
        leaves = flax.traverse_util.flatten_dict(variables, sep="/")
        return {path: leaf for path, leaf in leaves.items() if "/backbone/" not in path}

    return jax.device_get(jax.jit(outside_of_the_backbone)())


@pytest.fixture
def state(variables):
    """Returns the tiny YOLACT's state dictionary as dbolya/yolact would save it."""
    return export.state_dict(variables, tiny_yolact.CONFIG)


def flat(variables) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items()}


def assert_equal(ours, theirs) -> None:
    ours, theirs = flat(ours), flat(theirs)
    assert set(ours) == set(theirs)
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


@pytest.fixture(autouse=True)
def logging_as_before():
    """Restores logging after a test, because the commands configure it for the whole process."""
    root, own = logging.getLogger(), logging.getLogger("jaxseg")
    before = root.handlers[:], root.level, own.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


# ---- The originals' weights ----


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "yolact_r50" else pytest.mark.slow) for name in RUNS])
def test_a_pth_gives_what_its_arrays_give(golden, tmp_path, name):
    """This holds for every configuration with goldens, and for weights of another seed."""
    config = jaxseg.load_config(f"configs/{name}.py")
    state = yolact_weights(golden / "yolact" / RUNS[name])
    for key in ("backbone.conv1.weight", "prediction_layers.0.bbox_layer.bias"):
        if key in state:
            state[key] = yolact_noise(key, state[key].shape, 5)
    write_zip(tmp_path / "weights.pth", state)
    loaded = jaxseg.load_weights(tmp_path / "weights.pth", config)
    assert_equal(loaded, jaxseg.load_weights(state, config))
    back = export.state_dict(loaded, config)
    assert set(back) == set(state)
    for key, value in state.items():
        assert key.endswith("num_batches_tracked") or np.array_equal(back[key], value), key


@pytest.mark.parametrize("new_container", [True, False])
def test_what_torch_saves_gives_the_same(golden, tmp_path, new_container):
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    config = jaxseg.load_config("configs/yolact_r50.py")
    state = yolact_weights(golden / "yolact" / RUNS["yolact_r50"])
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    torch.save(tensors, tmp_path / "weights.pth", _use_new_zipfile_serialization=new_container)
    assert_equal(jaxseg.load_weights(tmp_path / "weights.pth", config), jaxseg.load_weights(state, config))


@pytest.mark.slow
def test_outputs_through_a_pth_are_the_originals(golden, tmp_path):
    run = load_run(golden, "yolact_r50")
    write_zip(tmp_path / "weights.pth", yolact_weights(run.folder))
    outputs = jax.jit(run.model.apply)(jaxseg.load_weights(tmp_path / "weights.pth", run.config), run.images()[:1])
    run.check_outputs(outputs)


def test_old_names_and_surplus_entries_of_the_original(variables, state):
    """The files are those of 2018 and of version 1.0, without the counters of batch norm."""
    for key in ("weight", "bias"):
        state[f"prediction_layers.0.upfeature.{key}"] = state.pop(f"prediction_layers.0.upfeature.0.{key}")
    state = {key: value for key, value in state.items() if "num_batches" not in key}
    state |= {"backbone.layer1.0.conv1.weight": np.zeros(3), "fpn.downsample_layers.2.weight": np.zeros(3)}
    assert_equal(load_weights(state, tiny_yolact.CONFIG), variables)


def test_the_semantic_head_may_be_missing(variables, state, fresh, caplog):
    caplog.set_level(logging.INFO, "jaxseg")
    loaded = load_weights({key: value for key, value in state.items() if "semantic" not in key}, tiny_yolact.CONFIG)
    head = loaded["params"].pop("semantic_head")
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(head[leaf], fresh[f"params/semantic_head/{leaf}"])
    rest = {**variables, "params": {key: value for key, value in variables["params"].items() if key != "semantic_head"}}
    assert_equal(loaded, rest)
    assert re.search(r"a detector of dbolya/yolact, \d+ arrays; initialized at random: semantic_head$", caplog.text, re.MULTILINE)


def torchvision_names(state) -> dict[str, np.ndarray]:
    """Returns a YOLACT's backbone under the names of torchvision's classifier."""
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    named = {re.sub(r"^layers\.(\d)", lambda match: f"layer{int(match[1]) + 1}", key): value for key, value in backbone.items()}
    assert "layer4.0.downsample.1.running_var" in named
    return named | {"fc.weight": np.zeros((10, 8)), "fc.bias": np.zeros(10)}


def test_a_resnet_fills_the_backbone_and_the_rest_starts_fresh(variables, state, fresh):
    for path, value in flat(load_weights(torchvision_names(state), tiny_yolact.CONFIG)).items():
        np.testing.assert_array_equal(value, (flat(variables) if "/backbone/" in path else fresh)[path], err_msg=path)


def test_torchvisions_names(golden):
    """The names are those of a ResNet-50 inside one of torchvision's detectors."""
    arrays = load_arrays(golden / "two_stage" / "tv_maskrcnn.npz")
    names = [*arrays["names"].tolist(), *(key.removeprefix("buf/") for key in arrays if key.startswith("buf/"))]
    theirs = {name.removeprefix("backbone.body.") for name in names if name.startswith("backbone.body.")}
    config = jaxseg.load_config("configs/yolact_r50.py")
    paths = flax.traverse_util.flatten_dict(jax.eval_shape(lambda: init_variables(build_model(config), config)), sep="/")
    assert set(names_torchvision.RESNET.names(config.model, paths).values()) == theirs


@pytest.mark.slow
def test_a_darknet_fills_the_backbone():
    variables = noise(DARKNET)
    state = export.state_dict(variables, DARKNET)
    named = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    assert "layers.4.2.conv2.1.running_var" in named
    loaded = load_weights(named, DARKNET)
    for collection in ("params", "batch_stats"):
        assert_equal(loaded[collection]["backbone"], variables[collection]["backbone"])
    np.testing.assert_array_equal(loaded["params"]["head"]["class"]["bias"], 0)


# ---- Strictness ----


def test_both_lists_and_the_nearest_names(state):
    state["prediction_layers.0.box_layer.weight"] = state.pop("prediction_layers.0.bbox_layer.weight")
    state["proto_net.12.bias"] = np.zeros(3)
    state["fpn.lat_layers.0.bias"] = np.zeros(3)
    with pytest.raises(WeightsError) as refusal:
        load_weights(state, tiny_yolact.CONFIG)
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    assert lines[0] == "The weights do not fit demo_shapes; they were taken for a detector of dbolya/yolact."
    assert lines[1:6] == [
        "Missing in the weights, with the most similar unused name (1):",
        "prediction_layers.0.bbox_layer.weight  prediction_layers.0.box_layer.weight",
        "Unused by the model (2):",
        "prediction_layers.0.box_layer.weight",
        "proto_net.12.bias",
    ]
    assert lines[6:8] == ["Different shapes, in the weights and in the model (1):", "fpn.lat_layers.0.bias  (3,)  (8,)"]


def test_another_backbone_is_refused(state):
    deeper = override(tiny_yolact.CONFIG, {"model.backbone.stage_sizes": (1, 2, 1, 1)})
    with pytest.raises(WeightsError, match=r"Missing in the weights.*\(15\):\n  backbone\.layers\.1\.1\.bn1\.running_mean"):
        load_weights(state, deeper)
    with pytest.raises(WeightsError, match=r"Unused by the model \(15\):"):
        load_weights(export.state_dict(noise(deeper), deeper), tiny_yolact.CONFIG)


def test_names_of_nobody_are_refused():
    with pytest.raises(WeightsError, match=r"(?s)Missing in the weights.*Unused by the model \(1\):\n  some\.weight"):
        load_weights({"some.weight": np.zeros(3)}, tiny_yolact.CONFIG)


def test_other_classes_start_the_head_fresh_when_asked(variables, state, caplog):
    config = override(tiny_yolact.CONFIG, {"model.num_classes": 2})
    with pytest.raises(
        WeightsError,
        match=r"(?s)Different shapes.*conf_layer\.weight  \(30, 8, 3, 3\)  \(18, 8, 3, 3\).*--config\.init\.skip_mismatched=True",
    ):
        load_weights(state, config)
    loaded = flat(load_weights(state, override(config, {"init.skip_mismatched": True})))
    skipped = {f"params/{module}/{leaf}" for module in ("head/class", "semantic_head") for leaf in ("kernel", "bias")}
    for path, value in loaded.items():
        if path not in skipped:
            np.testing.assert_array_equal(value, flat(variables)[path], err_msg=path)
    assert loaded["params/head/class/kernel"].shape == (3, 3, 8, 18)
    assert 0.1 < np.abs(loaded["params/head/class/kernel"]).max() < 0.2, "Xavier's bound is 0.16"
    np.testing.assert_array_equal(loaded["params/semantic_head/bias"], 0)
    told = {record.getMessage().split(":")[0] for record in caplog.records if record.levelno == logging.WARNING}
    leaves = [f"{name}.{leaf}" for name in ("prediction_layers.0.conf_layer", "semantic_seg_conv") for leaf in ("weight", "bias")]
    assert told == {f"skipped {name}" for name in leaves}


# ---- Our own files, and the export ----


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, variables) -> Path:
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(create_state(variables, optax.sgd(0.0), tiny_yolact.CONFIG.train).replace(step=np.int32(3)), {})
    checkpoints.close()
    save_config(folder, tiny_yolact.CONFIG)
    return folder


@pytest.mark.parametrize("name", ["weights.npz", "weights.safetensors"])
def test_converted_weights_are_the_runs(run_folder, variables, tmp_path, name, capsys):
    assert convert.main([str(run_folder), str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == f"written to {tmp_path / name}\n"
    assert "params/head/class/kernel" in read_weights(tmp_path / name)
    assert_equal(load_weights(tmp_path / name, tiny_yolact.CONFIG), variables)


def test_there_and_back_is_exact(run_folder, variables, tmp_path):
    """A run is exported to PyTorch, converted to our format, and exported to PyTorch again."""
    first, ours, second = tmp_path / "a.pth", tmp_path / "b.safetensors", tmp_path / "c.pth"
    config = str(run_folder / "config.json")
    assert export_torch.main([str(run_folder), str(first), "--step", "3"]) == 0
    assert convert.main([str(first), str(ours), "--config", config]) == 0
    assert export_torch.main([str(ours), str(second), "--config", config]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert_equal(load_weights(first, tiny_yolact.CONFIG), variables)
    assert_equal(load_weights(run_folder, tiny_yolact.CONFIG), variables)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["RUN", "weights.pth"], r"weights\.pth is no name .* \.npz or \.safetensors"),
        (["nowhere.pth", "a.npz"], r"no nowhere\.pth/config\.json; give a run folder .* --config FILE"),
        (["nowhere.pth", "a.npz", "--config", "configs/demo_shapes.py"], r"no weights at nowhere\.pth"),
        (["RUN", "a.npz", "--step", "7"], r"no checkpoint 7"),
        (["RUN", "RUN/config.json/a.npz"], r"cannot be written"),
    ],
)
def test_what_cannot_be_converted_is_said_in_a_sentence(run_folder, tmp_path, monkeypatch, arguments, sentence, capsys):
    monkeypatch.chdir(tmp_path)
    assert convert.main([argument.replace("RUN", str(run_folder)) for argument in arguments]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_the_original_loads_what_is_exported(tmp_path):
    """It loads strictly in a separate process; this needs PyTorch and a clone of dbolya/yolact."""
    pytest.importorskip("torch", reason="wants PyTorch")
    checkout = Path(os.environ.get("JAXSEG_YOLACT", REPOSITORY.parent / "peer-yolact"))
    if not (checkout / "yolact.py").is_file():
        pytest.skip("wants PyTorch and a checkout of dbolya/yolact")
    config = jaxseg.load_config("configs/yolact_r50.py")
    variables = noise(config)
    export.write_state_dict(tmp_path / "weights.pth", config, variables)
    script = f"""
import pathlib, sys
sys.path.insert(0, {str(REPOSITORY / "benchmarks")!r})
from detect import make_importable
make_importable(pathlib.Path({str(checkout)!r}))
import torch
from data import set_cfg
from yolact import Yolact
set_cfg("yolact_resnet50_config")
model, saved = Yolact(), torch.load({str(tmp_path / "weights.pth")!r}, weights_only=True)
assert model.state_dict().keys() == saved.keys()
model.load_weights({str(tmp_path / "weights.pth")!r})
assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
print(float(model.prediction_layers[0].bbox_layer.weight[3, 2, 1, 0]))
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert float(answer.stdout.split()[-1]) == variables["params"]["head"]["box"]["kernel"][1, 0, 2, 3]


# ---- Commands ----


def test_eval_draws_with_a_pth(run_folder, state, tmp_path):
    write_zip(tmp_path / "weights.pth", state)
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    run(
        Options(
            checkpoint=str(tmp_path / "weights.pth"),
            config=str(run_folder / "config.json"),
            output=tmp_path / "out",
            images=str(tmp_path / "a.png"),
            score_threshold=0.0,
            top_k=2,
        )
    )
    assert (tmp_path / "out" / "detections.json").is_file()


def test_eval_refuses_a_backbone(run_folder, state, tmp_path):
    write_zip(tmp_path / "resnet.pth", torchvision_names(state))
    with pytest.raises(WeightsError, match=r"a ResNet of torchvision, which is only the backbone .* as init\.weights"):
        load_detector(str(tmp_path / "resnet.pth"), str(run_folder / "config.json"), {})


def test_training_starts_from_weights_and_goes_on_without(tmp_path, monkeypatch, caplog):
    """A run starts from the folder of another run, and then resumes from its own checkpoint.

    The resumed run no longer needs the weights.
    """
    caplog.set_level(logging.INFO, "jaxseg")
    monkeypatch.setattr(load, "build_model", lambda config: tiny_training.TinyDetector())
    monkeypatch.setattr(load, "init_variables", tiny_training.init_tiny)
    source, tuned = tmp_path / "source", tmp_path / "tuned"
    tiny_training.train_tiny(source, {"train.steps": 4})
    still = {"train.steps": 1, "train.learning_rate": 1e-9, "train.warmup_steps": 0, "train.seed": 9}
    caplog.clear()
    tiny_training.train_tiny(tuned, {**still, "init.weights": str(source)})
    assert "starts from weights" in caplog.text
    assert f"{source}: jaxseg's own variables, 8 arrays" in caplog.text
    expected = tiny_training.params_of(source)
    for path, value in tiny_training.params_of(tuned).items():
        if "params" in path:
            np.testing.assert_allclose(value, expected[path], atol=1e-6, err_msg=path)
    tiny_training.train_tiny(tuned, {**still, "train.steps": 2, "init.weights": "gone.pth"})
    assert "goes on from step 1 of 2" in caplog.text
    assert "init.weights: " in caplog.text


def test_train_tells_what_is_wrong_with_weights(tmp_path, monkeypatch, capsys):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with tiny_training.tiny_parts(tiny_training.TinyData()):
        arguments = ["--config", "configs/demo_shapes.py", "--workdir", str(tmp_path / "run")]
        assert train.main([*arguments, f"--config.init.weights={tmp_path / 'weights.pth'}"]) == 2
    assert "WeightsError: " in capsys.readouterr().err
