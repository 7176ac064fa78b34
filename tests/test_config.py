"""Configurations: files, overrides and errors.

Every file of configs/ is traced through its initialisation, losses and detection.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.config import Config, ConfigError, from_dict, load_config, override, parse_config_flags, show, show_differences, to_dict
from jaxseg.data.stream.targets import no_targets
from jaxseg.models import YolactConfig
from jaxseg.structures import Batch
from jaxseg.training.checkpoint import save_config
from jaxseg.training.optimizer import autoscaled

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*.py"))


LOSSES = {
    "yolact": ("box", "class", "mask", "semantic"),
    "rcnn": ("rpn_class", "rpn_box", "class", "box", "mask"),
    "retinanet": ("class", "box"),
}


def empty_batch(config: Config, model: jaxseg.models.Detector, size: int = 2) -> Batch:
    """Makes a batch of zeros with the shapes of the configuration's input pipeline."""
    spec = model.input_spec
    one = Batch(
        images=np.zeros((*spec.input_sizes[0], 3), np.uint8),
        image_sizes=np.zeros(2, np.int32),
        indices=np.zeros((), np.int32),
        valid=np.zeros((), bool),
        targets=no_targets(spec, config.data.max_objects, spec.input_sizes[0]),
    )
    return jax.tree.map(lambda array: jnp.zeros((size, *array.shape), array.dtype), one)


# One of each kind of program. Others differ from these only in numbers or in the conventions of an
# original; C4 and a dilated C5 are in test_rcnn_variants.py.
KINDS = (
    "yolact_r50",
    "yolact_darknet53",
    "yolact_plus_r50",
    "faster_rcnn_r50_fpn_1x",
    "mask_rcnn_r50_fpn_torchvision",
    "retinanet_r50_fpn_1x",
)
TRACED = [
    pytest.param(path, dtype, id=f"{path.stem}-{dtype}", marks=[] if path.stem in KINDS and dtype == "bfloat16" else pytest.mark.slow)
    for path in CONFIGS
    for dtype in ("bfloat16", "float32")
]


@pytest.mark.parametrize(("path", "dtype"), TRACED)
def test_every_config_traces(path, dtype):
    """The slow cases in float32 trace all layers, and the others one block in each stage of a ResNet."""
    config = load_config(path, {"model.dtype": dtype})
    assert config.name == path.stem
    if dtype == "bfloat16" and config.model.backbone.name == "resnet":
        config = override(config, {"model.backbone.stage_sizes": (1, 1, 1, 1)})
    model = jaxseg.build_model(config)
    variables = jax.eval_shape(lambda: jaxseg.init_variables(model, config))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def losses(variables, key):
        batch = empty_batch(config, model)
        return model.apply(variables, batch, train=True, method="losses", rngs={"sampling": key}, mutable=["batch_stats"])[0]

    def detect(variables):
        batch = empty_batch(config, model)
        return model.apply(variables, batch.images, batch.image_sizes, method="detect")

    shapes = jax.eval_shape(losses, variables, jax.random.key(0))
    names = [name for name in LOSSES[config.model.kind] if name != "mask" or model.input_spec.mask_size]
    names += ["mask_iou"] if getattr(config.model, "mask_iou_channels", ()) else []
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == dict.fromkeys(names, ((), jnp.dtype("float32")))
    detections = jax.eval_shape(detect, variables)
    rows = {"yolact": "detection", "rcnn": "roi", "retinanet": None}[config.model.kind]
    rows = getattr(config.model, rows) if rows else config.model
    assert detections.boxes.shape == (2, rows.max_detections, 4)
    if model.input_spec.mask_size is None:
        assert detections.masks is None
    else:
        # In C4, the stride of C5 cancels the upsampling of the deconvolution.
        side = {"yolact": model.input_spec.mask_size[0], "rcnn": 14 if config.model.kind == "rcnn" and config.model.neck == "c4" else 28}
        assert detections.masks.shape == (2, rows.max_detections, *(2 * [side[config.model.kind]]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_its_command(path):
    assert f"python train.py --config configs/{path.name}\n" in path.read_text().split('"""')[1]


def test_overrides_are_parsed_by_type():
    config = load_config(
        "configs/yolact_r50.py",
        {
            "train.batch_size": "16",
            "train.learning_rate": "2e-3",
            "train.decay_steps": "(10, 20)",
            "data.keep_empty": "true",
            "data.root": "123",
            "model.anchor_scales": "((8,), (16,), (32,), (64,), (128,))",
        },
    )
    assert config.train.batch_size == 16
    assert config.train.learning_rate == 2e-3
    assert config.train.decay_steps == (10, 20)
    assert config.data.keep_empty is True
    assert config.data.root == "123"
    assert config.model.anchor_scales[0] == (8.0,)


def test_steps_from_the_command_line_are_meant_literally():
    for overrides, steps in (({}, 3_200_000), ({"train.steps": 30}, 30), ({"train.steps": 30, "train.autoscale_steps": True}, 120)):
        config = load_config("configs/yolact_r50.py", {"train.batch_size": 2, **overrides})
        assert autoscaled(config.train).steps == steps
        assert autoscaled(config.train).learning_rate == 2.5e-4


def test_steps_from_the_command_line_replace_epochs(tmp_path):
    epochs = load_config("configs/yolact_r50.py", {"train.epochs": 12, "train.decay_epochs": (8, 11)})
    save_config(tmp_path, epochs)
    train = load_config(tmp_path / "config.json", {"train.steps": 30}).train
    assert (train.steps, train.epochs, train.decay_epochs) == (30, 0, ())


def test_another_number_of_classes_takes_its_names_from_the_annotations():
    config = load_config("configs/yolact_r50.py", {"model.num_classes": 3})
    assert config.data.class_names == config.data.category_ids == ()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model.num_clases": 3}, "Unknown config key model.num_clases: model has the keys kind, num_classes,.*Did you mean num_classes"),
        ({"modle.num_classes": 3}, "Unknown config key modle.num_classes: config has the keys name, model, data, init, train, eval"),
        ({"train.steps.more": 3}, "steps is a single value and has no key more"),
        ({"train.steps": "many"}, "train.steps = 'many' is not a whole number"),
        ({"train.steps": 1.5}, "train.steps = 1.5 is not a whole number"),
        ({"train.steps": True}, "train.steps = True is not a whole number"),
        ({"train.steps": 0}, "config.train.steps = 0 is out of range; it must be at least 1"),
        ({"train.learning_rate": "fast"}, "train.learning_rate = 'fast' is not a number"),
        ({"train.learning_rate": -1.0}, "train.learning_rate = -1.0 is out of range; it must be above 0"),
        ({"train.momentum": 1.0}, "train.momentum = 1.0 is out of range"),
        ({"train.decay_steps": (20, 10)}, "train.decay_steps = .* distinct steps in ascending order"),
        ({"train.warmup_factor": 2}, "train.warmup_factor = 2.0 is out of range; it must be between 0 and 1"),
        ({"train.bias_rate_factor": 0}, "train.bias_rate_factor = 0.0 is out of range; it must be above 0"),
        ({"train.decay_epochs": (8, 11)}, "train.decay_epochs = .* empty when config.train.epochs is 0, where decay_steps apply"),
        ({"train.epochs": 11, "train.decay_epochs": (8, 11)}, "train.decay_epochs = .* each before the last of config.train.epochs = 11"),
        ({"train.epochs": 12, "train.decay_epochs": (11, 8)}, "train.decay_epochs = .* distinct epochs in ascending order"),
        ({"train.epochs": 12, "train.steps": 100}, "train.steps and train.epochs both say how long to train; give one of them"),
        ({"data.keep_empty": "perhaps"}, "data.keep_empty = 'perhaps' is not a true or false"),
        ({"data.class_names": ("cat",)}, "data.category_ids .* as many ids as class_names, 1"),
        ({"model.detection.nms": "soft"}, "model.detection.nms = 'soft' is not one of 'fast', 'cross_class', 'greedy'"),
        ({"model.losses.negative_iou": 0.6}, "negative_iou = 0.6 is out of range; it must be at most positive_iou, 0.5"),
        ({"model.anchor_scales": ((8,), (16,))}, "anchor_scales = .* five tuples of scales"),
        ({"model.backbone.stage_sizes": (3, 4, 6)}, "stage_sizes = .* 4 stages for a resnet"),
        ({"model.backbone": "resnet18"}, "model.backbone is a group of keys; set one of them: name, stage_sizes"),
        ({"model.image_size": 16}, "image_size = 16 is out of range; it must be at least 32 pixels"),
        ({"train.learning_rate": "1e999"}, "train.learning_rate = inf is not a finite number"),
        ({"train.learning_rate": 10**400}, "train.learning_rate = 1000.*000 is not a finite number"),
        ({"train.weight_decay": float("nan")}, "train.weight_decay = nan is not a finite number"),
        ({"train.decay_factor": -0.1}, "train.decay_factor = -0.1 is out of range; it must be between 0 and 1"),
        ({"train.seed": 2**64}, f"train.seed = {2**64} is out of range; it must be 0 or more and at most 4294967295"),
        ({"train.steps": 2**31}, "train.steps = 2147483648 is out of range; it must be at least 1 and at most 2147483647"),
        ({"train.steps": "9" * 5000}, "train.steps = '99.*99' is not a whole number"),
        ({"train.decay_steps": "(" * 10_000}, r"train.decay_steps = '\(\(.* is not a list"),
        ({"data.workers": 100_000}, "data.workers = 100000 is out of range; it must be 0 to 1024 processes"),
        ({"data.root": "a\0b"}, "data.root = .* holds a NUL or half of a surrogate pair"),
        ({"data.root": "\ud800"}, "data.root = .* holds a NUL or half of a surrogate pair"),
        (
            {"model.num_classes": 2, "data.class_names": ("cat", "cat"), "data.category_ids": (1, 2)},
            r"data.class_names = .* distinct names; \['cat'\] occurs more than once",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config("configs/yolact_r50.py", overrides)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config file .*yolact_r5.py; the files beside it are: .*yolact_r50.py"):
        load_config("configs/yolact_r5.py")
    for text, sentence in (("x = 1", "has no function get_config"), ("def get_config(): return 3", "returned a int, not a")):
        path = tmp_path / "config.py"
        path.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            load_config(path)
    broken = tmp_path / "config.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        load_config(broken)
    for content, sentence in (
        (b"[1, 2]", "holds a list; a saved configuration is an object"),
        ('{"name": "é"}'.encode("latin-1"), "byte 10 is not UTF-8"),
        (b'{"train": {"steps": ' + b"9" * 5000 + b"}}", "cannot be used: Exceeds the limit"),
        (b'{"train": 3}', "train is a group of keys"),
        (b'{"model": {"kind": [1]}}', r"model.kind = \[1\] is not one of"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match=sentence):
            load_config(broken)
    broken.write_text('{"nme": "x"}')
    with pytest.raises(ConfigError, match="Unknown config key nme"):
        load_config(broken)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_survives_its_json(path):
    config = load_config(path)
    assert from_dict(Config, to_dict(config)) == config


def test_shown_lines_are_the_command_lines_flags():
    config = load_config("configs/demo_shapes.py")
    flags, others = parse_config_flags([f"--{line.replace(' = ', '=', 1)}" for line in show(config).splitlines() if "name" not in line])
    assert others == []
    plain = {key: value.strip("'") for key, value in flags.items()}
    assert override(config, plain) == config


def test_only_what_differs_from_the_defaults_is_shown_at_the_start():
    assert show_differences(Config(model=YolactConfig())) == ""
    assert show_differences(load_config("configs/yolact_r50.py")).splitlines() == [
        "config.name = 'yolact_r50'",
        "config.model.backbone.stage_sizes = (3, 4, 6, 3)",
    ]
    shown = show_differences(load_config("configs/retinanet_r50_fpn_1x.py"))
    assert "config.train.learning_rate" in shown
    assert "config.model.anchor_sizes" not in shown, "the defaults of the kind must not be shown"


def test_flags_take_their_value_in_both_forms():
    assert parse_config_flags(["--config.a.b=1", "--config", "f.py", "--config.c", "2"]) == ({"a.b": "1", "c": "2"}, ["--config", "f.py"])
    with pytest.raises(ConfigError, match=r"--config.a has no value"):
        parse_config_flags(["--config.a", "--workdir", "x"])
