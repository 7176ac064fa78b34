"""The weights of the originals' runs, rebuilt from the names of the tensors.

Each tensor is noise with its name as a seed, at a scale that was recorded with the run. Only the
statistics of batch normalisation are stored. `data/weights.json` has a digest of each run's
weights, as the originals' rule makes them.
"""

import hashlib
import json
import re
import zlib
from pathlib import Path

import numpy as np
from goldens import DATA, Golden, load_arrays, load_json

DIGESTS = DATA / "weights.json"
# The batch normalisation at the end of a residual branch.
LAST_OF_BRANCH = re.compile(r"layers\.\d+\.\d+\.(bn3|conv2\.1)\.weight")
# The convolution that yields the offsets of a deformable one.
OFFSETS = "conv_offset_mask"


def yolact_weights(folder: Path) -> dict[str, np.ndarray]:
    """Rebuilds the state dictionary of a run of dbolya/yolact, whose numbers are in the folder."""
    meta, recorded = load_json(folder / "meta.json"), load_arrays(folder / "calib.npz")
    state = {}
    for name, (shape, *_) in meta["keys"].items():
        value = recorded[name] if name in recorded else yolact_noise(name, tuple(shape), meta["seed"])
        if f"scale/{name}" in recorded:
            value = value * recorded[f"scale/{name}"]
        if f"bgbias/{name}" in recorded:
            background = np.arange(len(value)) % meta["num_classes"] == 0
            value = np.where(background, value + recorded[f"bgbias/{name}"], value)
        state[name] = value
    return checked(f"yolact/{folder.name}", state)


def yolact_noise(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Makes a tensor before scaling: He's noise for kernels, scales near 1, small biases."""
    rng = np.random.Generator(np.random.Philox(key=np.array([zlib.crc32(name.encode()), seed], np.uint64)))
    if name.endswith(".num_batches_tracked"):
        return np.array(1000 + seed)
    if len(shape) == 4:
        squared = 0.25 if OFFSETS in name else 2
        return rng.standard_normal(shape, np.float32) * np.float32((squared / np.prod(shape[1:])) ** 0.5)
    if name.endswith(".weight"):
        return (rng.uniform(0.7, 1.3, shape) * (0.5 if LAST_OF_BRANCH.search(name) else 1)).astype(np.float32)
    normalises = "bn" in name or ".1.bias" in name
    return (rng.standard_normal(shape) * (0.3 if OFFSETS in name else 0.1 if normalises else 0.05)).astype(np.float32)


def rcnn_weights(name: str, golden: Golden) -> dict[str, np.ndarray]:
    """Rebuilds the state dictionary of a run of one of the R-CNN originals, given its arrays."""
    state = {}
    rows = zip(golden["names"].tolist(), json.loads(str(golden["shapes"])), golden["gain"], golden["offset"], strict=True)
    for tensor, shape, gain, offset in rows:
        noise = np.random.RandomState(zlib.crc32(tensor.encode())).standard_normal(shape).astype(np.float32)
        state[tensor] = np.float32(offset) + noise * np.float32(gain)
    recorded = {key.removeprefix("buf/"): value for key, value in golden.items() if key.startswith("buf/")}
    return checked(f"two_stage/{name}", state | recorded)


def yolact_predictions(seed: int, anchors: int, classes: int) -> dict[str, np.ndarray]:
    """Makes the predictions of `loss_only.npz` for two images; classes include the background."""
    rng = np.random.default_rng(seed)
    boxes, logits, coefficients, prototypes, semantic = (
        rng.standard_normal((2, *shape), np.float32)
        for shape in ((anchors, 4), (anchors, classes), (anchors, 32), (138, 138, 32), (classes - 1, 69, 69))
    )
    return {
        "loc": boxes,
        "conf": logits * np.float32(1.5),
        "mask": np.tanh(coefficients),
        "proto": np.maximum(prototypes, 0) * np.float32(0.7),
        "segm": semantic,
    }


def digest(state: dict[str, np.ndarray]) -> str:
    """Computes a digest of all names, shapes and bits."""
    result = hashlib.sha256()
    for name, value in sorted(state.items()):
        result.update(f"{name} {value.dtype} {value.shape} ".encode())
        result.update(np.ascontiguousarray(value).data)
    return result.hexdigest()


def checked(run: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Checks that the weights equal those of the originals' rule bit for bit, and returns them."""
    assert digest(state) == json.loads(DIGESTS.read_text())[run], f"the rebuilt weights of {run} are not those of the run"
    return state
