"""The parts that all tests share: shape checks, devices, the originals' numbers, skipped tests."""

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Every shape and dtype in a signature of these packages is checked while the tests run.
install_import_hook(["jaxseg.ops", "jaxseg.models"], "beartype.beartype")

import jax
import pytest
from coco_mini import write_coco_mini
from goldens import golden_folder
from jax.sharding import AxisType, Mesh

from jaxseg.ops.implementation import missing_gpu

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """Returns the folder of the originals' numbers, which are full or reduced."""
    return golden_folder()


@pytest.fixture(scope="session")
def coco_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder in COCO's layout with the true annotations of 150 images.

    The pictures are COCO's own if `JAXSEG_COCO_MINI` or the folder beside the repository has them.
    Their licences do not allow them in the repository, so otherwise colour gradients of the same
    sizes replace them.
    """
    folder = Path(os.environ.get("JAXSEG_COCO_MINI", REPOSITORY.parent / "shared" / "data" / "coco_mini"))
    return folder if folder.is_dir() else write_coco_mini(tmp_path_factory.mktemp("coco_mini"))


@pytest.fixture
def use_detector(monkeypatch):
    """Returns a function that replaces the detector of every configuration by a given one."""
    from jaxseg.evaluation import detect

    def use(detector):
        monkeypatch.setattr(detect, "build_model", lambda config: detector)
        detect._detect_program.cache_clear()
        return detector

    yield use
    detect._detect_program.cache_clear()


@pytest.fixture
def two_devices() -> Mesh:
    """Returns a mesh that splits batches; its tests are skipped on a machine with one GPU."""
    if jax.device_count() < 2:
        pytest.skip("wants two devices")
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@pytest.fixture
def interpreted():
    """Runs kernels for GPUs in an interpreter, where a race between threads is an error.

    On a GPU that supports them, they run without the interpreter.
    """
    if missing_gpu() is None:
        yield
        return
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams, force_gpu_interpret_mode
    except ImportError:  # In jax 0.10 they are in a private module.
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams, force_gpu_interpret_mode
    with force_gpu_interpret_mode(InterpretGPUParams(detect_races=True)):
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints in one line what the skipped tests need, by their reasons, such as "wants PyTorch"."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
        terminalreporter.write_line(
            f"{len(skipped)} skipped: " + ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        )
