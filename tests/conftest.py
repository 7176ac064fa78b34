"""Shared by all tests: shape checks on, a small CPU world, and where the originals' numbers are."""

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Every shape and dtype in a signature of these rooms is checked while the tests run.
install_import_hook(["jaxseg.ops", "jaxseg.models"], "beartype.beartype")

import jax
import pytest
from jax.sharding import AxisType, Mesh

from jaxseg.ops.implementation import missing_gpu

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers the originals computed; tests that want it are left out where it is absent."""
    folder = Path(os.environ.get("JAXSEG_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden numbers at {folder}")
    return folder


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """150 real COCO images with masks; tests that want them are left out where they are absent."""
    folder = Path(os.environ.get("JAXSEG_COCO_MINI", REPOSITORY.parent / "shared" / "data" / "coco_mini"))
    if not folder.is_dir():
        pytest.skip(f"no coco_mini at {folder}")
    return folder


@pytest.fixture
def use_detector(monkeypatch):
    """Puts a detector in the place of every configuration's."""
    from jaxseg.evaluation import detect

    def use(detector):
        monkeypatch.setattr(detect, "build_model", lambda config: detector)
        detect._detect_program.cache_clear()
        return detector

    yield use
    detect._detect_program.cache_clear()


@pytest.fixture
def two_devices() -> Mesh:
    """A mesh that batches are split over; tests on a machine with one GPU are left out."""
    if jax.device_count() < 2:
        pytest.skip("one device")
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@pytest.fixture
def interpreted():
    """Kernels for GPUs run here, step by step, and a race between their threads is an error; on such a GPU they run as they are."""
    if missing_gpu() is None:
        yield
        return
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams, force_gpu_interpret_mode
    except ImportError:  # jax 0.10 has them in a private place
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams, force_gpu_interpret_mode
    with force_gpu_interpret_mode(InterpretGPUParams(detect_races=True)):
        yield
