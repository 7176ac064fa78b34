"""ResNets with deformable convolutions: their blocks, their names in each project, their start."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_rcnn import TINY

from jaxseg.config import ConfigError, load_config, override
from jaxseg.models import DeformableConfig, build_model, init_variables
from jaxseg.models.layers import DeformableConv, conv
from jaxseg.weights import load_weights
from jaxseg.weights.export import state_dict
from jaxseg.weights.names.torchvision import RESNET

EVERY_BLOCK = {(1, block) for block in range(4)} | {(2, block) for block in range(6)} | {(3, block) for block in range(3)}
EVERY_THIRD = {(1, 0), (1, 3), *((2, block) for block in range(0, 23, 3)), (3, 0)}


@pytest.mark.parametrize(("name", "blocks"), [("yolact_plus_r50", EVERY_BLOCK), ("yolact_plus_r101", EVERY_THIRD)])
def test_the_blocks_are_those_of_yolact_plus(name, blocks):
    backbone = load_config(f"configs/{name}.py").model.backbone
    found = {
        (stage, block) for stage, n in enumerate(backbone.stage_sizes) for block in range(n) if backbone.deformable.in_block(stage, block)
    }
    assert found == blocks


# What the projects call the entries of the deformable convolution in the first block of C3.
THEIR_SHAPES = {
    "faster_rcnn_r50_fpn_dconv_1x": {
        "backbone.layer2.0.conv2.weight": (8, 8, 3, 3),
        "backbone.layer2.0.conv2.conv_offset.weight": (18, 8, 3, 3),
        "backbone.layer2.0.conv2.conv_offset.bias": (18,),
        "backbone.layer1.0.conv2.weight": (4, 4, 3, 3),
    },
    "mask_rcnn_r50_fpn_dconv_3x_detectron2": {
        "backbone.bottom_up.res3.0.conv2.weight": (8, 8, 3, 3),
        "backbone.bottom_up.res3.0.conv2_offset.weight": (18, 8, 3, 3),
        "backbone.bottom_up.res3.0.conv2_offset.bias": (18,),
        "backbone.bottom_up.res2.0.conv2.weight": (4, 4, 3, 3),
    },
    "mask_rcnn_r50_fpn_1x": {
        "backbone.body.layer2.0.conv2.conv.weight": (8, 8, 3, 3),
        "backbone.body.layer2.0.conv2.offset.weight": (54, 8, 3, 3),
        "backbone.body.layer2.0.conv2.offset.bias": (54,),
        "backbone.body.layer1.0.conv2.weight": (4, 4, 3, 3),
    },
}
# maskrcnn-benchmark's option MODEL.RESNETS.STAGE_WITH_DCN, of version 2 with two groups of offsets.
CHANGES = {"mask_rcnn_r50_fpn_1x": {"model.backbone.deformable": DeformableConfig(every=(0, 1, 1, 1), offset_groups=2)}}


@pytest.mark.parametrize("name", THEIR_SHAPES)
def test_every_entry_is_used_and_goes_back(name):
    config = override(load_config(f"configs/{name}.py"), TINY | CHANGES.get(name, {}))
    values = noise(config)
    state = state_dict(values, config)
    for key, shape in THEIR_SHAPES[name].items():
        assert state[key].shape == shape, key
    jax.tree.map(np.testing.assert_array_equal, load_weights(state, config), values)


def noise(config):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(build_model(config), config))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.slow
def test_a_classifier_fills_all_but_offsets_and_biases_which_start_from_zero():
    config = override(load_config("configs/demo_yolact_plus.py"), {"model.backbone.width": 4})
    ordinary = override(config, {"model.backbone.deformable": DeformableConfig()})
    values = flax.traverse_util.flatten_dict(noise(ordinary), sep="/")
    names = RESNET.names(ordinary.model, values)
    classifier = {name: RESNET.to_theirs(ordinary.model, path, values[path]) for path, name in names.items()}
    loaded = flax.traverse_util.flatten_dict(load_weights(classifier, config), sep="/")
    for path in names:
        np.testing.assert_array_equal(loaded[path], values[path], err_msg=path)
    added = [path for path in loaded if path.startswith("params/backbone/") and path not in names]
    assert len(added) == 3 * 3
    assert all((np.asarray(loaded[path]) == 0).all() for path in added)


@pytest.mark.parametrize(("modulated", "factor"), [(False, 1.0), (True, 0.5)])
def test_a_new_layer_is_an_ordinary_convolution(modulated, factor):
    """The offsets are 0, and the factors are the sigmoid of 0."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8, 4)), jnp.float32)
    layer = DeformableConv(6, stride=2, dilation=2, modulated=modulated, offset_groups=2, bias=True)
    ours, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    assert variables["params"]["offset"]["kernel"].shape[-1] == 2 * 9 * (3 if modulated else 2)
    ordinary = conv(6, 3, 2, dilation=2, bias=False).apply({"params": {"kernel": variables["params"]["kernel"]}}, x)
    np.testing.assert_allclose(ours, factor * ordinary, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.backbone.deformable.every": (0, 1, 1)}, "four numbers of 0 or more"),
        ({"model.backbone.deformable.offset_groups": 3}, "a divisor of the width, 64"),
        ({"model.backbone.deformable.offset_groups": 0}, "at least 1"),
        ({"model.mask_iou_channels": (8, 0)}, "at least 1 each"),
        ({"model.mask_iou_channels": (8,) * 7}, "fewer convolutions, because masks of 138 pixels"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config("configs/yolact_plus_r50.py", changes)
