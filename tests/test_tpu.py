"""RoIAlign, NMS and mask targets, compiled for chips of Cloud TPU v5e and v4.

Nothing here runs on a TPU. The work for one image has to stay on its device, to fit into memory,
and to use the form of RoIAlign that XLA estimates to be faster. The tests need the compiler,
libtpu, and are skipped without it.
"""

import functools
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.data.stream.targets import no_targets
from jaxseg.devices import each_image, on_mesh
from jaxseg.models import MASKRCNN_BENCHMARK, MMDETECTION, Conventions
from jaxseg.models.rcnn.mask_targets import mask_targets
from jaxseg.ops.nms import class_nms, exact_nms, fast_nms
from jaxseg.ops.roi_align import choice, roi_align
from jaxseg.ops.roi_align.bilinear import Geometry
from jaxseg.structures import InputSpec, Targets

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("wants libtpu", allow_module_level=True)

# A chip of v5e has two images; v4 counts its cores as devices, and each of them has one.
IMAGES = 8
TOPOLOGIES = ["v5e:2x2", "v4:2x2x1"]
POOLING = {"sampling_ratio": 2, "aligned": False}


@pytest.fixture(params=TOPOLOGIES)
def slice_of_tpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """Makes a mesh of four chips for the compiler."""
    from jax.experimental import topologies

    # No chip is used, so no metadata server needs to be queried, and other test processes can
    # compile at the same time.
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(request.param, platform="tpu").devices
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def compiled(function: Callable[..., Any], mesh: Mesh, *arguments: Any) -> Any:
    """Compiles the program for a batch that is split over the devices."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    return jax.jit(on_mesh(function, mesh), in_shardings=split, out_shardings=split).lower(*arguments).compile()


def assert_images_stay_apart(program: Any) -> None:
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", program.as_text())


def pooling(sizes: tuple[tuple[int, int], ...], channels: int, rois: int, cells: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns RoIAlign with its gradient, both in bfloat16, and abstract arguments."""
    features = tuple(jax.ShapeDtypeStruct((IMAGES, *size, channels), jnp.bfloat16) for size in sizes)
    boxes = jax.ShapeDtypeStruct((IMAGES, rois, 4), jnp.float32)
    levels = jax.ShapeDtypeStruct((IMAGES, rois), jnp.int32)
    gradient = jax.ShapeDtypeStruct((IMAGES, rois, cells, cells, channels), jnp.bfloat16)
    strides = [4 * 2**level for level in range(len(sizes))]

    def both_ways(features: tuple[jax.Array, ...], boxes: jax.Array, levels: jax.Array, gradient: jax.Array) -> Any:
        pooled, pull_back = jax.vjp(
            lambda features: roi_align(features, boxes, levels, strides=strides, output_size=cells, **POOLING), features
        )
        return pooled, pull_back(gradient)

    return both_ways, (features, boxes, levels, gradient)


@pytest.mark.parametrize(
    ("sizes", "cells", "sampling_ratio", "form"),
    [
        (((64, 96), (32, 48), (16, 24), (8, 12)), 7, 2, "matmul"),
        (((50, 84),), 14, 2, "matmul"),
        (((200, 336), (100, 168), (50, 84), (25, 42)), 7, 2, "gather"),
        (((200, 336), (100, 168), (50, 84), (25, 42)), 14, 2, "gather"),
        (((200, 336), (100, 168), (50, 84), (25, 42)), 7, 0, "matmul"),
    ],
)
def test_the_form_for_a_tpu(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[tuple[int, int], ...], cells: int, sampling_ratio: int, form: str
) -> None:
    """It is matrix products for small maps and C4, and gathers for a pyramid of 800 x 1344.

    Other backends have another rule.
    """
    strides = tuple(4 * 2**level for level in range(len(sizes)))
    geometry = Geometry(sizes, strides, cells, sampling_ratio=sampling_ratio, aligned=False)
    monkeypatch.setattr(choice, "platform", lambda: "tpu")
    assert choice.default_forms(geometry, 512) == (form, form)
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    assert set(choice.default_forms(geometry, 512)) == {"gather" if sampling_ratio else "matmul"}


@pytest.mark.slow
def test_roi_align_of_small_maps(slice_of_tpus: Mesh) -> None:
    function, arguments = pooling(((50, 84),), 128, 32, 7)
    program = compiled(function, slice_of_tpus, *arguments)
    assert_images_stay_apart(program)
    # There are no gathers or scatters of single rows.
    assert not re.search(r"bf16\S+ gather\(| scatter\(", program.as_text())
    # Between the two products there are 2 x 32 RoIs of 7 x 84 pixels and 128 channels, 19 MB. They
    # stay in vector memory.
    assert program.memory_analysis().temp_size_in_bytes < 16e6


@pytest.mark.slow
def test_roi_align_of_large_maps(slice_of_tpus: Mesh) -> None:
    function, arguments = pooling(((200, 336), (100, 168)), 128, 64, 7)
    program = compiled(function, slice_of_tpus, *arguments)
    assert_images_stay_apart(program)
    text = program.as_text()
    assert " scatter(" in text
    assert " convolution(" not in text
    # A chip of v5e has two images. A table of their features has 43 MB, and one of their gradient
    # in float32 86 MB.
    assert program.memory_analysis().temp_size_in_bytes < 130e6


# A matrix of all overlaps would exceed these bounds: it would have 26 MB, 160 MB and more.
NMS = {
    "fast": (
        functools.partial(fast_nms, iou_threshold=0.5, top_k=200, max_detections=100),
        [((19248, 4), jnp.float32), ((80, 19248), jnp.float32), ((19248,), jnp.bool_)],
        16e6,
    ),
    "exact": (
        jax.vmap(functools.partial(exact_nms, iou_threshold=0.7)),
        [((5, 2000, 4), jnp.float32), ((5, 2000), jnp.float32), ((5, 2000), jnp.bool_)],
        16e6,
    ),
    "classes": (
        functools.partial(class_nms, score_threshold=0.05, iou_threshold=0.5, max_detections=100),
        [((1000, 80, 4), jnp.float32), ((1000, 80), jnp.float32)],
        16e6,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NMS)
def test_nms(slice_of_tpus: Mesh, name: str) -> None:
    function, shapes, bound = NMS[name]
    arguments = [jax.ShapeDtypeStruct((IMAGES, *shape), dtype) for shape, dtype in shapes]
    program = compiled(each_image(function), slice_of_tpus, *arguments)
    assert_images_stay_apart(program)
    assert program.memory_analysis().temp_size_in_bytes < bound


def abstract_targets(rules: Conventions) -> Targets:
    """Makes the shapes of the ground truth of a Mask R-CNN, as its configuration has them."""
    spec = InputSpec(
        input_sizes=((800, 1344),),
        mask_size=(112, 112),
        semantic_size=None,
        num_classes=80,
        mask_frame="box",
        mask_targets=rules.mask_targets,
        mask_pool={"polygons": 6144, "bitmaps": 131_072}[rules.mask_targets],
    )
    targets = no_targets(spec, 100, (800, 1344))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((IMAGES, *leaf.shape), leaf.dtype), targets)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [MASKRCNN_BENCHMARK, MMDETECTION], ids=["polygons", "bitmaps"])
def test_mask_targets(slice_of_tpus: Mesh, rules: Conventions) -> None:
    make_targets = functools.partial(mask_targets, size=28, crop_size=112, longest=1344, conventions=rules)
    shapes = [((128, 4), jnp.float32), ((128,), jnp.int32), ((2,), jnp.int32)]
    regions, objects, image_size = (jax.ShapeDtypeStruct((IMAGES, *shape), dtype) for shape, dtype in shapes)
    program = compiled(each_image(make_targets), slice_of_tpus, regions, objects, abstract_targets(rules), image_size)
    assert_images_stay_apart(program)
    assert " scatter(" not in program.as_text()
    # All edges of the regions over all their cells would have 100 MB as bits alone.
    assert program.memory_analysis().temp_size_in_bytes < 4e6
