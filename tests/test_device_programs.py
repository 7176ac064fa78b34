"""What devices tell each other in whole programs, and whole programs with kernels for GPUs."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_yolact
from test_rcnn_programs import TINY

import jaxseg
from jaxseg.config import Config, load_config, override
from jaxseg.data.targets import no_targets
from jaxseg.evaluation import detect
from jaxseg.models import trainable
from jaxseg.structures import Batch
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.sharding import make_mesh, replicated, split
from jaxseg.training.step import create_state, make_train_step

BATCH = 4
MASK_RCNN = load_config("configs/mask_rcnn_r50_fpn_1x.py", TINY | {"train.batch_size": BATCH, "model.fpn_channels": 128})
CONFIGS = {"yolact": tiny_yolact.CONFIG, "mask_rcnn": MASK_RCNN}


def _shaped(tree: Any, sharding: jax.sharding.NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _train_step(config: Config) -> tuple[Any, tuple[Any, ...]]:
    """The program, and shapes of what it takes, over all devices."""
    mesh, model = make_mesh(), jaxseg.build_model(config)
    variables = jax.eval_shape(lambda: jaxseg.init_variables(model, config))
    trained = trainable(config, variables["params"])
    optimizer = make_optimizer(config.train, trained)
    state = jax.eval_shape(lambda: create_state(jaxseg.init_variables(model, config), optimizer, config.train))
    size = model.input_spec.image_sizes[0]
    targets = jax.tree.map(lambda x: np.repeat(x[None], BATCH, 0), no_targets(model.input_spec, 5))
    batch = Batch(
        np.zeros((BATCH, *size, 3), np.uint8), np.zeros((BATCH, 2), np.int32), np.zeros(BATCH, np.int32), np.zeros(BATCH, bool), targets
    )
    step = make_train_step(model, optimizer, trained, config.train, mesh)
    return step, (_shaped(state, replicated(mesh)), _shaped(batch, split(mesh)))


def _detection(config: Config) -> tuple[Any, tuple[Any, ...]]:
    mesh, model = make_mesh(), jaxseg.build_model(config)
    variables = jax.eval_shape(lambda: jaxseg.init_variables(model, config))
    size = model.input_spec.image_sizes[0]
    pictures = (jax.ShapeDtypeStruct((BATCH, *size, 3), jnp.float32), jax.ShapeDtypeStruct((BATCH, 2), jnp.int32))
    return detect._detect_program(config, mesh), (_shaped(variables, replicated(mesh)), *_shaped(pictures, split(mesh)))


def _collectives(program: Any, operands: tuple[Any, ...]) -> tuple[set[str], list[str]]:
    """Kinds of communication in the compiled program, and those within loops."""
    text = program.lower(*operands).compile().as_text()
    found = re.findall(r"^.* ((?:all|collective|reduce)-[a-z]+(?:-scatter)?)(?:-start)?\(.*$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if re.search(r" all-[a-z]+(-start)?\(", line)]
    return set(found) - {"reduce-precision", "reduce-window"}, [line for line in lines if "/while/" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_devices_tell_each_other_sums_in_training_and_nothing_in_detection(name):
    """XLA alone would gather all images' scores for sorting, and ask all devices at every turn of a suppression."""
    assert len(jax.devices()) > 1
    kinds, in_loops = _collectives(*_train_step(CONFIGS[name]))
    assert kinds == {"all-reduce"}
    assert not in_loops
    assert _collectives(*_detection(CONFIGS[name])) == (set(), [])


@pytest.mark.parametrize(
    ("name", "program", "kernels"),
    [
        # Fast NMS.
        ("yolact", _detection, 1),
        # Two of exact NMS for proposals, two for detections, RoIAlign for boxes and for masks.
        ("mask_rcnn", _detection, 6),
        # Proposals; RoIAlign for boxes and for masks, forward and backward.
        ("mask_rcnn", _train_step, 6),
    ],
)
def test_whole_programs_lower_for_gpus_with_their_kernels(name, program, kernels):
    function, operands = program(override(CONFIGS[name], {"model.implementation": "mosaic_gpu"}))
    text = jax.export.export(function, platforms=["cuda"])(*operands).mlir_module()
    assert Counter(re.findall(r"custom_call @(mosaic_gpu\w*)", text)).total() == kernels
    # On each device, with its part of the batch.
    assert "sdy.manual_computation" in text
