"""Shared by all tests: shape checks, a small CPU world, the originals' numbers, skipped tests."""

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Every shape and dtype in a signature of these rooms is checked while the tests run.
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
    """The folder of the numbers that the originals computed: the full ones, or else the reduced."""
    return golden_folder()


@pytest.fixture(scope="session")
def coco_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 images of COCO with their true annotations, in COCO's layout.

    The pictures are COCO's own where `JAXSEG_COCO_MINI` or the folder beside the repository has them.
    Their licences keep them out of the repository, so colour gradients of the same sizes stand in
    for them elsewhere.
    """
    folder = Path(os.environ.get("JAXSEG_COCO_MINI", REPOSITORY.parent / "shared" / "data" / "coco_mini"))
    return folder if folder.is_dir() else write_coco_mini(tmp_path_factory.mktemp("coco_mini"))


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
        pytest.skip("wants two devices")
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tells in one line what the skipped tests want, which their reasons say: "wants PyTorch"."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
        terminalreporter.write_line(
            f"{len(skipped)} skipped: " + ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        )
