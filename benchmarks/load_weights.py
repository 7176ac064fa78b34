"""Measures the time and the memory that `jaxseg.load_weights` takes for each file format.

    python benchmarks/load_weights.py            # needs Linux, because memory is read from /proc

The weights are a checkpoint of yolact_r50 with 125 MB. Each format is loaded in a separate process,
after jaxseg has been imported and JAX has started. The times are those of the first call, and of
the second one, which does not trace the model again. The memory is the peak of the resident set
during the first call minus that before it, as a multiple of the file's size; it includes pages of
the file that are mapped into memory.
"""

import argparse
import pickle
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import jaxseg
from jaxseg.weights import export
from jaxseg.weights.formats.pytorch import state_dict_pickle, write_zip

FORMATS = ("zip.pth", "legacy.pth", "zoo.pkl", "arrays.npz", "ours.npz", "ours.safetensors")


def write_files(folder: Path, config: jaxseg.Config) -> None:
    """Writes the same noise in every format."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: jaxseg.init_variables(jaxseg.build_model(config), config))
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), shapes)
    state = export.state_dict(variables, config)
    write_zip(folder / "zip.pth", state)
    write_legacy(folder / "legacy.pth", state)
    (folder / "zoo.pkl").write_bytes(pickle.dumps({"model": state}, protocol=2))
    np.savez(folder / "arrays.npz", **state)  # type: ignore[arg-type]
    export.write_variables(folder / "ours.npz", variables)
    export.write_variables(folder / "ours.safetensors", variables)


def write_legacy(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes the stream that torch.save wrote until 2020."""
    with path.open("wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
            pickle.dump(head, file, protocol=2)
        file.write(state_dict_pickle(state))
        pickle.dump([str(i) for i in range(len(state))], file, protocol=2)
        for value in state.values():
            file.write(struct.pack("<q", value.size) + value.tobytes())


def resident(kind: str) -> int:
    """Returns this process's bytes in memory, now (VmRSS) or at the peak since a reset (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])


def measure(path: Path, config_file: str) -> None:
    """Prints the seconds of the first and the second call, and the bytes."""
    config = jaxseg.load_config(config_file)
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before = resident("VmRSS")
    # Writing 5 resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        variables = jax.block_until_ready(jaxseg.load_weights(path, config))
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            peak = resident("VmHWM") - before
        del variables
    print(*seconds, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/yolact_r50.py")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure, options.config)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), jaxseg.load_config(options.config))
        print(f"{'file':<18}{'MB':>8}{'first call, s':>16}{'second call, s':>16}{'memory / file':>16}")
        for name in FORMATS:
            path = Path(folder) / name
            command = [sys.executable, __file__, "--config", options.config, "--measure", str(path)]
            first, second, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
            size = path.stat().st_size
            print(f"{name:<18}{size / 1e6:>8.1f}{first:>16.2f}{second:>16.2f}{peak / size:>16.2f}")


if __name__ == "__main__":
    main()
