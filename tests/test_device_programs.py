"""The communication between devices in whole programs, and whole programs with GPU kernels."""

import re
from collections import Counter
from typing import Any

import jax
import pytest
import tiny_yolact
from compile_for_pod import COLLECTIVE, abstract_batch, abstract_step
from tiny_rcnn import TINY

import jaxseg
from jaxseg.config import Config, load_config, override
from jaxseg.devices import make_mesh, replicated, split
from jaxseg.evaluation import detect
from jaxseg.models import DeformableConfig

MASK_RCNN = load_config("configs/mask_rcnn_r50_fpn_1x.py", TINY | {"model.fpn_channels": 128})
PLUS = {"model.backbone.deformable": DeformableConfig(every=(0, 1, 1, 1), bias=True), "model.mask_iou_channels": (4, 8)}
CONFIGS = {
    "yolact": override(tiny_yolact.CONFIG, {"train.batch_size": 4}),
    "yolact_plus": override(tiny_yolact.CONFIG, {"train.batch_size": 4} | PLUS),
    "mask_rcnn": override(MASK_RCNN, {"train.batch_size": 4}),
}


def _train_step(config: Config) -> tuple[Any, tuple[Any, ...]]:
    """Returns the program over all devices, and the shapes of its arguments."""
    step, state = abstract_step(config, make_mesh())
    spec = jaxseg.build_model(config).input_spec
    return step, (state, abstract_batch(config, spec, spec.input_sizes[0]))


def _detection(config: Config) -> tuple[Any, tuple[Any, ...]]:
    mesh, model = make_mesh(), jaxseg.build_model(config)
    variables = jax.eval_shape(lambda: jaxseg.init_variables(model, config))
    pictures = abstract_batch(config, model.input_spec, model.input_spec.input_sizes[0])
    sharding = replicated(mesh), split(mesh), split(mesh)
    return jax.jit(detect._detect_program(config, mesh).run, in_shardings=sharding), (variables, pictures.images, pictures.image_sizes)


def _collectives(program: Any, operands: tuple[Any, ...]) -> tuple[set[str], list[str]]:
    """Returns the kinds of collectives in the compiled program, and its collectives in loops."""
    found = list(COLLECTIVE.finditer(program.lower(*operands).compile().as_text()))
    return {match[1] for match in found}, [match[0] for match in found if "/while/" in match[0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_devices_tell_each_other_sums_in_training_and_nothing_in_detection(name):
    """By itself, XLA would gather all scores to sort them, and synchronise each NMS iteration."""
    assert len(jax.devices()) > 1
    kinds, in_loops = _collectives(*_train_step(CONFIGS[name]))
    assert kinds == {"all-reduce"}
    assert not in_loops
    assert _collectives(*_detection(CONFIGS[name])) == (set(), [])


@pytest.mark.parametrize(
    ("name", "program", "kernels"),
    [
        # YOLACT has one kernel, Fast NMS.
        ("yolact", _detection, 1),
        # There are two kernels of exact NMS for proposals, two for detections, and RoIAlign for
        # boxes and for masks.
        pytest.param("mask_rcnn", _detection, 6, marks=pytest.mark.slow),
        # There are two kernels for proposals, and RoIAlign for boxes and for masks, forward and
        # backward.
        pytest.param("mask_rcnn", _train_step, 6, marks=pytest.mark.slow),
    ],
)
def test_whole_programs_lower_for_gpus_with_their_kernels(name, program, kernels):
    function, operands = program(override(CONFIGS[name], {"model.implementation": "mosaic_gpu"}))
    text = jax.export.export(function, platforms=["cuda"])(*operands).mlir_module()
    assert Counter(re.findall(r"custom_call @(mosaic_gpu\w*)", text)).total() == kernels
    # The kernels run on each device with its part of the batch.
    assert "sdy.manual_computation" in text
