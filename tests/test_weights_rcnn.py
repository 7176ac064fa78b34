"""Weights of R-CNN's originals and of MSRA's ResNets.

The originals are torchvision, detectron2, mmdetection, maskrcnn-benchmark and Detectron.
"""

import functools
import pickle
import struct
from collections import Counter, OrderedDict
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from goldens import load_arrays
from rcnn_originals import RUNS
from rebuilt_weights import rcnn_weights

import jaxseg
from jaxseg.config import Config, load_config, override
from jaxseg.models import DETECTRON2, IMAGENET_RESNET50, MMDETECTION, TORCHVISION, build_model, init_variables
from jaxseg.weights import WeightsError, export
from jaxseg.weights.formats.pytorch import write_zip
from jaxseg.weights.load import load_weights
from jaxseg.weights.names import caffe2 as names_caffe2
from jaxseg.weights.names import layouts
from jaxseg.weights.names import rcnn as names_rcnn
from jaxseg.weights.names import retinanet as names_retinanet
from jaxseg.weights.names.rules import NameTable

SMALL = {
    "model.num_classes": 3,
    "model.input.shapes": ((64, 64),),
    "model.backbone.stage_sizes": (1, 1, 1, 1),
    "model.backbone.width": 4,
    "model.fpn_channels": 8,
}
SMALL_RCNN = SMALL | {"model.roi.box_features": 12, "model.roi.mask_channels": 8, "model.roi.box_size": 3, "model.roi.samples": 8}
C4 = {
    "model.neck": "c4",
    "model.anchor_sizes": ((32.0, 64.0),),
    "model.roi.mask_convolutions": 0,
    "model.backbone.stage_sizes": (1, 1, 1, 2),
}
DILATED_C5 = {"model.neck": "dilated_c5", "model.anchor_sizes": ((32.0, 64.0),)}
STRIDE_IN_3X3 = {"model.backbone.pixel_mean": IMAGENET_RESNET50.pixel_mean, "model.backbone.stride_in_1x1": False}

MASK_RCNN = override(load_config("configs/mask_rcnn_r50_fpn_1x.py"), SMALL_RCNN)
# A small detector of each origin; the anchors of C4 have two sizes.
SMALL_DETECTORS: dict[str, tuple[NameTable, Config]] = {
    "torchvision": (names_rcnn.TORCHVISION, override(MASK_RCNN, STRIDE_IN_3X3 | {"model.conventions": TORCHVISION})),
    "detectron2": (names_rcnn.DETECTRON2, override(MASK_RCNN, {"model.conventions": DETECTRON2})),
    "detectron2 C4": (names_rcnn.DETECTRON2, override(MASK_RCNN, C4 | {"model.conventions": DETECTRON2})),
    "detectron2 dilated C5": (names_rcnn.DETECTRON2, override(MASK_RCNN, DILATED_C5 | {"model.conventions": DETECTRON2})),
    "mmdetection": (names_rcnn.MMDETECTION, override(MASK_RCNN, STRIDE_IN_3X3 | {"model.conventions": MMDETECTION})),
    "mmdetection, as Caffe": (names_rcnn.MMDETECTION, override(MASK_RCNN, {"model.conventions": MMDETECTION})),
    "mmdetection C4": (names_rcnn.MMDETECTION, override(MASK_RCNN, C4 | {"model.conventions": MMDETECTION})),
    "maskrcnn-benchmark": (names_rcnn.MASKRCNN_BENCHMARK, MASK_RCNN),
    "maskrcnn-benchmark C4": (names_rcnn.MASKRCNN_BENCHMARK, override(MASK_RCNN, C4)),
    "maskrcnn-benchmark Faster": (names_rcnn.MASKRCNN_BENCHMARK, override(MASK_RCNN, {"model.masks": False})),
    "maskrcnn-benchmark RetinaNet": (
        names_retinanet.MASKRCNN_BENCHMARK,
        override(load_config("configs/retinanet_r50_fpn_1x.py"), SMALL | {"model.head_convolutions": 2}),
    ),
    "Detectron": (names_caffe2.DETECTRON, MASK_RCNN),
    "Detectron C4": (names_caffe2.DETECTRON, override(MASK_RCNN, C4)),
}
# Some names and shapes of parameters that no golden contains, taken from the originals' sources.
THEIR_SHAPES = {
    "detectron2 C4": {
        "backbone.stem.conv1.weight": (4, 3, 7, 7),
        "backbone.stem.conv1.norm.running_var": (4,),
        "backbone.res4.0.shortcut.norm.weight": (64,),
        "proposal_generator.rpn_head.anchor_deltas.weight": (24, 64, 1, 1),
        "roi_heads.res5.0.conv1.weight": (32, 64, 1, 1),
        "roi_heads.res5.1.conv3.norm.bias": (128,),
        "roi_heads.box_predictor.cls_score.weight": (4, 128),
        "roi_heads.mask_head.deconv.weight": (128, 8, 2, 2),
        "roi_heads.mask_head.predictor.weight": (3, 8, 1, 1),
    },
    "detectron2 dilated C5": {
        "backbone.res5.0.conv2.weight": (32, 32, 3, 3),
        "roi_heads.box_head.fc1.weight": (12, 9 * 128),
        "roi_heads.mask_head.mask_fcn1.weight": (8, 128, 3, 3),
    },
    "mmdetection C4": {
        "backbone.layer3.0.conv1.weight": (16, 32, 1, 1),
        "roi_head.shared_head.layer4.1.bn3.running_mean": (128,),
        "roi_head.bbox_head.fc_reg.weight": (12, 128),
        "roi_head.mask_head.upsample.weight": (128, 8, 2, 2),
    },
    "maskrcnn-benchmark C4": {
        "backbone.body.stem.bn1.running_mean": (4,),
        "rpn.head.cls_logits.weight": (6, 64, 1, 1),
        "roi_heads.box.feature_extractor.head.layer4.0.downsample.0.weight": (128, 64, 1, 1),
        "roi_heads.box.predictor.bbox_pred.weight": (16, 128),
        "roi_heads.mask.predictor.conv5_mask.weight": (128, 8, 2, 2),
        "roi_heads.mask.predictor.mask_fcn_logits.bias": (4,),
    },
    "maskrcnn-benchmark RetinaNet": {
        "backbone.fpn.fpn_inner2.weight": (8, 32, 1, 1),
        "backbone.fpn.fpn_layer4.bias": (8,),
        "backbone.fpn.top_blocks.p6.weight": (8, 128, 3, 3),
        "backbone.fpn.top_blocks.p7.weight": (8, 8, 3, 3),
        "rpn.head.cls_tower.0.weight": (8, 8, 3, 3),
        "rpn.head.bbox_tower.2.bias": (8,),
        "rpn.head.cls_logits.weight": (27, 8, 3, 3),
        "rpn.head.bbox_pred.weight": (36, 8, 3, 3),
    },
    "Detectron": {
        "conv1_w": (4, 3, 7, 7),
        "res_conv1_bn_s": (4,),
        "res2_0_branch1_bn_b": (16,),
        "res5_0_branch2c_w": (128, 32, 1, 1),
        "fpn_inner_res5_0_sum_w": (8, 128, 1, 1),
        "fpn_inner_res4_0_sum_lateral_w": (8, 64, 1, 1),
        "fpn_res2_0_sum_b": (8,),
        "conv_rpn_fpn2_w": (8, 8, 3, 3),
        "rpn_bbox_pred_fpn2_w": (12, 8, 1, 1),
        "fc6_w": (12, 72),
        "bbox_pred_w": (16, 12),
        "_[mask]_fcn4_w": (8, 8, 3, 3),
        "conv5_mask_w": (8, 8, 2, 2),
        "mask_fcn_logits_b": (4,),
    },
    "Detectron C4": {"conv_rpn_w": (64, 64, 3, 3), "rpn_cls_logits_b": (6,), "res5_1_branch2a_bn_s": (32,), "cls_score_w": (4, 128)},
}


@functools.cache
def noise(config: Config) -> dict[str, np.ndarray]:
    """Makes noise for every parameter, by its path, without compiling anything."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_variables(build_model(config), config))
    return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat(shapes).items()}


def flat(variables) -> dict:
    return flax.traverse_util.flatten_dict(variables, sep="/")


def their_state(origin: NameTable, config: Config, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts our values to the names and layouts of an origin."""
    return {name: origin.to_theirs(config.model, path, values[path]) for path, name in origin.names(config.model, values).items()}


def assert_equal(loaded, values: dict[str, np.ndarray]) -> None:
    loaded = flat(loaded)
    assert set(loaded) == set(values)
    for path, value in values.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)


# ---- The originals' weights ----


# Each original's Mask R-CNN has all names of its Faster R-CNN.
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "faster" in name else []) for name in RUNS])
def test_every_entry_of_the_originals_is_used_and_goes_back(golden, name):
    """The export restores everything but the deltas and masks of the background.

    The original does not learn from those.
    """
    spec = load_arrays(golden / "two_stage" / f"{name}.npz")
    state = rcnn_weights(name, spec)
    file, changes = RUNS[name]
    config = load_config(f"configs/{file}.py", changes)
    back = export.state_dict(load_weights(state, config), config)
    keys = set(spec["all_keys"].tolist() if "all_keys" in spec else state)
    assert set(back) == {key for key in keys if "cell_anchors" not in key and key not in ("pixel_mean", "pixel_std")}
    background = {"bbox_pred": 4, "mask_fcn_logits": 1} if name.startswith(("tv", "mrb")) else {}
    for key, value in state.items():
        drop = background.get(key.split(".")[-2], 0) if key.startswith("roi_heads") else 0
        np.testing.assert_array_equal(back[key][drop:], value[drop:], err_msg=key)
        np.testing.assert_array_equal(back[key][:drop], 0, err_msg=key)


@pytest.mark.parametrize("name", SMALL_DETECTORS)
def test_every_table_there_and_back(name):
    """The tables are tested for all necks and kinds, with copies on several devices.

    The names from the originals' sources are tested, too.
    """
    origin, config = SMALL_DETECTORS[name]
    values = noise(config)
    state = their_state(origin, config, values)
    for key, shape in THEIR_SHAPES.get(name, {}).items():
        assert state[key].shape == shape, key
    if origin is not names_caffe2.DETECTRON:
        exported = export.state_dict(flax.traverse_util.unflatten_dict(values, sep="/"), config)
        assert {key for key in exported if "num_batches" not in key} == set(state)
        state = {f"module.{key}": value for key, value in exported.items()}
    assert_equal(load_weights(state, config), values)


def test_entries_that_no_model_needs():
    """These are anchors, normalisation, a copy of C4's head, zero biases and momenta."""
    surplus = {
        "detectron2": ["pixel_mean", "proposal_generator.anchor_generator.cell_anchors.0"],
        "maskrcnn-benchmark": ["rpn.anchor_generator.cell_anchors.0"],
        "maskrcnn-benchmark C4": ["roi_heads.mask.feature_extractor.head.layer4.0.conv1.weight"],
        "mmdetection": ["backbone.bn1.num_batches_tracked"],
        "Detectron": ["conv1_b", "res2_0_branch2a_b", "fc1000_w", "fc6_w_momentum"],
    }
    for name, keys in surplus.items():
        origin, config = SMALL_DETECTORS[name]
        values = noise(config)
        assert_equal(load_weights(their_state(origin, config, values) | {key: np.zeros(2) for key in keys}, config), values)


def test_torchvisions_older_names():
    """The names in the published files lack the index that `Conv2dNormActivation` adds."""
    origin, config = SMALL_DETECTORS["torchvision"]
    values = noise(config)
    state = their_state(origin, config, values)
    old = {}
    for key, value in state.items():
        for now, then in [
            ("inner_blocks.0.0.", "inner_blocks.0."),
            ("inner_blocks.3.0.", "inner_blocks.3."),
            ("layer_blocks.2.0.", "layer_blocks.2."),
            ("rpn.head.conv.0.0.", "rpn.head.conv."),
            *((f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.") for i in range(4)),
        ]:
            key = key.replace(now, then)
        old[key] = value
    assert len(set(old) - set(state)) == 2 * 8
    assert_equal(load_weights(old, config), values)


# ---- Layouts that differ from torch's layers ----


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_a_transposed_convolution_is_torchs():
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    x, weight = random(1, 3, 4, 5), random(3, 2, 2, 2)
    theirs = torch.nn.functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), stride=2).numpy()
    ours = np.einsum("bcyx,ijco->boyixj", x, layouts.TRANSPOSED_CONVOLUTION.to_ours(weight)).reshape(1, 2, 8, 10)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_flattened_region_gives_what_torch_gives():
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    region, weight = random(2, 5, 3, 3), random(4, 45)
    theirs = torch.nn.functional.linear(torch.from_numpy(region).flatten(1), torch.from_numpy(weight)).numpy()
    ours = region.transpose(0, 2, 3, 1).reshape(2, -1) @ layouts.DENSE.to_ours(layouts.flattened(3).to_ours(weight))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_stem_takes_rgb():
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    bgr, weight = random(1, 3, 9, 9), random(2, 3, 7, 7)
    theirs = torch.nn.functional.conv2d(torch.from_numpy(bgr), torch.from_numpy(weight)).numpy()
    kernel = layouts.CONVOLUTION.to_ours(layouts.BGR.to_ours(weight))
    ours = jax.lax.conv_general_dilated(
        bgr[:, ::-1].transpose(0, 2, 3, 1), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["torchvision", "maskrcnn-benchmark", "Detectron"])
def test_the_background_goes_from_first_to_last(name):
    origin, config = SMALL_DETECTORS[name]
    rows = {
        "box_predictor/class": ([0, 1, 2, 3], [1, 2, 3, 0]),
        "box_predictor/box": (range(16), range(4, 16)),
        "mask_head/output": ([0, 1, 2, 3], [1, 2, 3]),
    }
    for module, (theirs, ours) in rows.items():
        np.testing.assert_array_equal(origin.to_ours(config.model, f"params/{module}/bias", np.array(theirs)), list(ours))
        kernel = np.array(theirs)[:, None] * np.ones(5)
        np.testing.assert_array_equal(origin.to_ours(config.model, f"params/{module}/kernel", kernel)[2], list(ours))


@pytest.mark.parametrize("name", ["detectron2", "mmdetection"])
def test_a_background_that_is_last_stays(name):
    origin, config = SMALL_DETECTORS[name]
    for module in ("box_predictor/class", "box_predictor/box", "mask_head/output"):
        np.testing.assert_array_equal(origin.to_ours(config.model, f"params/{module}/bias", np.arange(4)), np.arange(4))


@pytest.mark.parametrize(("name", "flips"), [("torchvision", False), ("mmdetection", False)] + [
    (name, True) for name in ("mmdetection, as Caffe", "detectron2", "maskrcnn-benchmark", "maskrcnn-benchmark RetinaNet", "Detectron")
])  # fmt: skip
def test_stems_of_msras_take_bgr(name, flips):
    origin, config = SMALL_DETECTORS[name]
    kernel = origin.to_ours(config.model, "params/backbone/conv1/kernel", random(4, 3, 7, 7))
    expected = random(4, 3, 7, 7)[:, ::-1] if flips else random(4, 3, 7, 7)
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


def test_detectron2_orders_anchors_by_size():
    """It has two sizes with three ratios each; here there are three ratios with two sizes each.

    Each anchor has four deltas.
    """
    origin, config = SMALL_DETECTORS["detectron2 C4"]
    theirs = [f"{size} {ratio}" for size in (32, 64) for ratio in (0.5, 1, 2)]
    ours = [f"{size} {ratio}" for ratio in (0.5, 1, 2) for size in (32, 64)]
    assert origin.to_ours(config.model, "params/rpn/objectness/bias", np.array(theirs)).tolist() == ours
    deltas = np.array([f"{anchor} {delta}" for anchor in theirs for delta in "xywh"])
    expected = [f"{anchor} {delta}" for anchor in ours for delta in "xywh"]
    assert origin.to_ours(config.model, "params/rpn/box/bias", deltas).tolist() == expected


# ---- Files ----


def write_python_2(path: Path, named: dict[str, np.ndarray]) -> None:
    """Writes a dictionary of arrays as Python 2 pickled it, where bytes and names are text."""

    def text(value: bytes) -> bytes:
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value

    def row(*values: bytes) -> bytes:
        return pickle.MARK + b"".join(values) + pickle.TUPLE

    def whole(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    items = []
    for name, value in named.items():
        made = b"cnumpy.core.multiarray\n_reconstruct\n" + row(b"cnumpy\nndarray\n", row(whole(0)), text(b"b")) + pickle.REDUCE
        dtype = b"cnumpy\ndtype\n" + row(text(b"f4"), whole(0), whole(1)) + pickle.REDUCE
        order = row(whole(3), text(b"<"), *[pickle.NONE] * 3, whole(-1), whole(-1), whole(0)) + pickle.BUILD
        state = row(whole(1), row(*map(whole, value.shape)), dtype + order, pickle.NEWFALSE, text(value.astype("<f4").tobytes()))
        items.append(text(name.encode()) + made + state + pickle.BUILD)
    path.write_bytes(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS + pickle.STOP)


def write_trainers(path: Path, named: dict[str, np.ndarray]) -> None:
    """Writes a trainer's checkpoint, which also has counters, settings and a schedule."""
    checkpoint = {
        "meta": {"CLASSES": ("a", "b"), "PALETTE": [(1, 2, 3)], "epoch": 12, "lr": np.float64(0.1), "config": "text"},
        "state_dict": OrderedDict(named),
        "optimizer": {"state": {0: {"momentum_buffer": np.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scheduler": {"milestones": Counter([8, 11]), "gamma": 0.1},
        "iteration": 90_000,
    }
    path.write_bytes(pickle.dumps(checkpoint, protocol=2))


def write_benchmarks(path: Path, named: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    tensors = OrderedDict((f"module.{name}", torch.from_numpy(np.ascontiguousarray(value))) for name, value in named.items())
    schedule = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.zeros(1)], 0.1), [60, 80]).state_dict()
    torch.save(
        {"model": tensors, "optimizer": {"param_groups": [{"lr": 0.1}]}, "scheduler": schedule, "iteration": 90_000},
        path,
        _use_new_zipfile_serialization=False,
    )


def write_zoo(path: Path, named: dict[str, np.ndarray]) -> None:
    path.write_bytes(pickle.dumps({"model": named, "__author__": "Detectron2 Model Zoo"}, protocol=2))


def write_blobs(path: Path, named: dict[str, np.ndarray]) -> None:
    path.write_bytes(pickle.dumps({"blobs": named, "cfg": "NUM_GPUS: 8\n"}, protocol=2))


@pytest.mark.parametrize(
    ("name", "file", "write"),
    [
        ("torchvision", "maskrcnn_resnet50_fpn.pth", write_zip),
        ("detectron2", "model_final.pkl", write_zoo),
        ("mmdetection", "epoch_12.pth", write_trainers),
        ("maskrcnn-benchmark", "model_final.pth", write_benchmarks),
        ("Detectron", "model_final.pkl", write_blobs),
        ("Detectron", "model_final.pkl", write_python_2),
    ],
)
def test_the_weights_in_each_kind_of_file(tmp_path, name, file, write):
    origin, config = SMALL_DETECTORS[name]
    values = noise(config)
    write(tmp_path / file, their_state(origin, config, values))
    assert_equal(jaxseg.load_weights(tmp_path / file, config), values)


@pytest.mark.parametrize("statistics", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_msras_resnet_fills_the_backbone(tmp_path, statistics):
    """R-50.pkl exists in two versions, for Detectron and for detectron2.

    Batch norm is a scale and a bias in the first; the second has statistics and other names.
    """
    config = override(SMALL_DETECTORS["maskrcnn-benchmark C4"][1], {"model.masks": False})
    values = {path: value for path, value in noise(config).items() if "backbone/" in path or "stage4" in path}
    assert {path.split("/")[1] for path in values} == {"backbone", "box_head"}
    state = their_state(names_caffe2.MSRA, config, values)
    if statistics:
        state = {key.replace("_bn_s", "_bn_gamma").replace("_bn_b", "_bn_beta"): value for key, value in state.items()}
    else:
        state = {key: value for key, value in state.items() if "running" not in key}
        values |= {path: np.zeros_like(value) for path, value in values.items() if path.endswith("mean")}
        values |= {path: np.ones_like(value) for path, value in values.items() if path.endswith("var")}
    write_python_2(tmp_path / "R-50.pkl", state | {"conv1_b": np.zeros(4), "fc1000_w": np.zeros((10, 128)), "fc1000_b": np.zeros(10)})
    loaded = flat(jaxseg.load_weights(tmp_path / "R-50.pkl", config))
    for path, value in values.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)
    with pytest.raises(WeightsError, match=r"R-50\.pkl holds a ResNet of MSRA, which is only the backbone"):
        load_weights(tmp_path / "R-50.pkl", config, whole=True)


# ---- Weights that do not match ----


@pytest.mark.parametrize(
    ("weights", "model", "sentence"),
    [
        (
            "mmdetection",
            "torchvision",
            r"holds a detector of mmdetection, and mask_rcnn_r50_fpn_1x describes a detector of torchvision, .*"
            r"model\.conventions\.resize is 'opencv' there and 'float' here;.*jaxseg\.commands\.convert",
        ),
        ("torchvision", "maskrcnn-benchmark", r"a detector of torchvision, .*stride_in_1x1 is False there and True here"),
        ("detectron2", "mmdetection, as Caffe", r"a detector of detectron2, .* describes a detector of mmdetection"),
        ("maskrcnn-benchmark", "detectron2", r"model\.conventions\.pixel_offset is 1\.0 there and 0\.0 here"),
        ("Detectron", "detectron2", r"holds a detector of Detectron, .* describes a detector of detectron2"),
    ],
)
def test_weights_of_other_conventions_are_refused_and_load_when_converted(weights, model, sentence):
    origin, config = SMALL_DETECTORS[weights]
    other = SMALL_DETECTORS[model][1]
    values = noise(config)
    with pytest.raises(WeightsError, match=sentence) as refusal:
        load_weights(their_state(origin, config, values), other)
    assert "\n" not in str(refusal.value)
    assert_equal(load_weights(values, other), values)


def test_backbones_of_other_strides_are_refused():
    values = noise(MASK_RCNN)
    with pytest.raises(WeightsError, match=r"a ResNet of MSRA, .* describes a detector of torchvision, .*stride_in_1x1 is True there"):
        load_weights(their_state(names_caffe2.MSRA, MASK_RCNN, values), SMALL_DETECTORS["torchvision"][1])


def test_names_of_nobody_are_told_beside_those_of_the_configurations_original():
    with pytest.raises(WeightsError, match=r"taken for a detector of mmdetection\.\n(?s:.*)Unused by the model \(1\):\n  some"):
        load_weights({"some.weight": np.zeros(3)}, SMALL_DETECTORS["mmdetection"][1])


def test_nobodys_conventions_are_not_exported():
    config = override(MASK_RCNN, {"model.conventions.roi_aligned": True})
    with pytest.raises(WeightsError, match="mask_rcnn_r50_fpn_1x mixes conventions"):
        export.state_dict({}, config)


def test_other_classes_start_the_predictors_fresh_when_asked():
    origin, config = SMALL_DETECTORS["torchvision"]
    values = noise(config)
    other = override(config, {"model.num_classes": 5})
    shapes = r"cls_score\.weight  \(4, 12\)  \(6, 12\)"
    with pytest.raises(
        WeightsError, match=rf"(?s)Different shapes, in the weights and in the model \(6\):.*{shapes}.*skip_mismatched=True"
    ):
        load_weights(their_state(origin, config, values), other)
    loaded = flat(load_weights(their_state(origin, config, values), other, skip_mismatched=True))
    for path, value in values.items():
        if "box_predictor" not in path and "mask_head/output" not in path:
            np.testing.assert_array_equal(loaded[path], value, err_msg=path)
    assert loaded["params/box_predictor/class/kernel"].shape == (12, 6)
    np.testing.assert_array_equal(loaded["params/mask_head/output/bias"], np.zeros(5))


def test_regions_of_another_size_are_another_shape():
    origin, config = SMALL_DETECTORS["detectron2"]
    with pytest.raises(WeightsError, match=r"fc1\.weight  \(12, 72\)  \(12, 200\)"):
        load_weights(their_state(origin, config, noise(config)), override(config, {"model.roi.box_size": 5}))
