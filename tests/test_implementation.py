"""The choice of an operation's implementation: defaults, overrides and meshes."""

import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxseg
from jaxseg.config import ConfigError
from jaxseg.devices import on_mesh
from jaxseg.ops import implementation
from jaxseg.ops.implementation import ENVIRONMENT, ImplementationError, dispatch, missing_gpu, require_implementation


@pytest.fixture(autouse=True)
def _no_wish(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def _gpus(monkeypatch, *capabilities: str) -> None:
    devices = [SimpleNamespace(device_kind=f"GPU {i}", compute_capability=c) for i, c in enumerate(capabilities)]
    monkeypatch.setattr(implementation, "platform", lambda: "gpu")
    monkeypatch.setattr(implementation.jax, "local_devices", lambda: devices)


def _chosen(name: str | None = None, obstacle: str | None = None) -> float:
    """Returns 1 if the kernel runs, and 0 if plain JAX does."""
    return float(dispatch(name, jnp.zeros(1), kernel=lambda x: x + 1, plain=lambda x: x, obstacle=obstacle)[0])


@pytest.mark.parametrize("name", [None, "auto", "xla"])
def test_cpus_take_plain_jax(name):
    assert _chosen(name) == 0


def test_a_name_comes_before_the_environment_and_the_environment_before_the_choice(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "mosaic_gpu")
    assert (_chosen(), _chosen("auto"), _chosen("xla")) == (1, 1, 0)
    monkeypatch.setenv(ENVIRONMENT, "xla")
    assert (_chosen(), _chosen("mosaic_gpu")) == (0, 1)
    monkeypatch.setenv(ENVIRONMENT, "auto")
    assert _chosen() == 0


def test_the_environment_may_not_name_what_does_not_exist(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "cuda")
    with pytest.raises(ImplementationError, match=f"{ENVIRONMENT} = 'cuda' is not one of auto, xla, mosaic_gpu"):
        _chosen()


def test_a_kernel_that_cannot_serve_says_why_only_where_it_was_asked_for(monkeypatch):
    with pytest.raises(ImplementationError, match='"mosaic_gpu" cannot do this: 3 channels'):
        _chosen("mosaic_gpu", obstacle="3 channels")
    _gpus(monkeypatch, "9.0")
    assert _chosen(obstacle="3 channels") == 0


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        (["9.0"], None),
        (["9.0", "10.0"], None),
        (["8.9"], "GPU 0 has compute capability 8.9, and 9.0 is the least"),
        (["9.0", "8.0"], "GPU 1 has compute capability 8.0"),
        (["gfx942"], "GPU 0 is not a GPU of NVIDIA"),
    ],
)
def test_kernels_want_hopper_or_later(monkeypatch, capabilities, missing):
    _gpus(monkeypatch, *capabilities)
    found = missing_gpu()
    assert found is None if missing is None else missing in found


def test_chosen_kernels_are_for_cuda_only_even_in_a_process_with_gpus(monkeypatch):
    """Programs that the process compiles for its CPU use plain JAX."""
    _gpus(monkeypatch, "9.0")
    assert _chosen() == 0
    program = jax.jit(lambda x: dispatch(None, x, kernel=lambda x: jnp.sin(x), plain=lambda x: jnp.cos(x)))
    text = {p: jax.export.export(program, platforms=[p])(jnp.zeros(1)).mlir_module() for p in ("cuda", "cpu", "rocm")}
    assert "sine" in text["cuda"]
    assert "cosine" not in text["cuda"]
    assert all("cosine" in text[p] and "stablehlo.sine" not in text[p] for p in ("cpu", "rocm"))


def test_a_wish_that_this_process_cannot_fulfil_is_told_at_the_door(monkeypatch):
    with pytest.raises(ImplementationError, match=re.escape("config.model.implementation = mosaic_gpu needs GPUs of NVIDIA")):
        require_implementation("mosaic_gpu", "config.model.implementation")
    monkeypatch.setenv(ENVIRONMENT, "mosaic_gpu")
    with pytest.raises(ImplementationError, match=f"{ENVIRONMENT} = mosaic_gpu needs GPUs .* but this process computes on cpu"):
        require_implementation("auto", "config.model.implementation")
    require_implementation("xla", "config.model.implementation")


def test_the_config_names_it():
    config = jaxseg.load_config("configs/yolact_r50.py", {"model.implementation": "xla"})
    assert config.model.implementation == "xla"
    with pytest.raises(ConfigError, match=r"model\.implementation = 'cuda' is not one of 'auto', 'xla', 'mosaic_gpu'"):
        jaxseg.load_config("configs/yolact_r50.py", {"model.implementation": "cuda"})
    with pytest.raises(ImplementationError, match=r"config\.model\.implementation"):
        jaxseg.Predictor(jaxseg.load_config("configs/yolact_r50.py", {"model.implementation": "mosaic_gpu"}), {})


@pytest.mark.parametrize(("implementation", "loaded"), [("xla", False), ("mosaic_gpu", True)])
def test_kernels_are_loaded_only_where_a_program_runs_them(implementation, loaded):
    """NMS and RoIAlign are traced with plain JAX or with kernels in a separate process."""
    program = f"""
import sys
import jax, jax.numpy as jnp
import jaxseg
from jaxseg.ops.nms import class_nms, exact_nms, fast_nms, labelled_nms
from jaxseg.ops.roi_align import roi_align

def loaded():
    return "jax.experimental.pallas.mosaic_gpu" in sys.modules

assert not loaded(), "import jaxseg"
boxes, scores, flags = jnp.zeros((4, 4)), jnp.zeros(4), jnp.zeros(4, bool)
by_class = dict(score_threshold=0.1, iou_threshold=0.5, max_detections=3)
alike = dict(implementation="{implementation}")
jax.eval_shape(lambda: fast_nms(boxes, scores[None], flags, iou_threshold=0.5, top_k=3, max_detections=3, **alike))
jax.eval_shape(lambda: exact_nms(boxes, scores, flags, iou_threshold=0.5, **alike))
jax.eval_shape(lambda: class_nms(boxes, scores[:, None], **by_class, **alike))
jax.eval_shape(lambda: labelled_nms(boxes, scores, flags.astype(int), **by_class, **alike))
features, levels = [jnp.zeros((1, 8, 8, 128))], jnp.zeros((1, 4), jnp.int32)
sampling = dict(strides=[4], output_size=2, sampling_ratio=2, aligned=True)
jax.eval_shape(jax.grad(lambda x: roi_align(x, boxes[None], levels, **sampling, **alike).sum()), features)
assert loaded() == {loaded}, "programs"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("images", [4, 3])
def test_on_a_mesh_each_device_does_its_part_of_the_batch(two_devices, images):
    """A callback takes the place of a kernel, because the partitioner cannot look into either."""
    split = NamedSharding(two_devices, PartitionSpec("data"))
    seen = []

    def double(x: np.ndarray) -> np.ndarray:
        seen.append(x.shape[0])
        return 2 * x

    def kernel(x: jax.Array) -> jax.Array:
        return jax.pure_callback(double, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def program(x: jax.Array) -> jax.Array:
        return dispatch("mosaic_gpu", x + 1, kernel=kernel, plain=lambda x: 2 * x)

    even = images % two_devices.size == 0
    compiled = jax.jit(on_mesh(program, two_devices), in_shardings=split if even else None)
    x = np.arange(images * 3, dtype=np.float32).reshape(images, 3)
    np.testing.assert_array_equal(compiled(x), 2 * (x + 1))
    # If the batch cannot be divided, one device has to process all of it.
    assert seen == ([images // 2] * 2 if even else [images])
    if even:
        assert "all-gather" not in compiled.lower(x).compile().as_text()
