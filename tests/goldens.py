"""The location of the numbers that the originals computed, and the functions that read them.

The folder `data` contains a reduced part of them. The full numbers are used instead if they are
present.
"""

import io
import json
import lzma
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

DATA = Path(__file__).parent / "data"


def golden_folder() -> Path:
    """Returns the folder of the full numbers if it is present, otherwise that of the reduced."""
    given = os.environ.get("JAXSEG_GOLDEN")
    if given is not None:
        return Path(given)
    full = DATA.parents[2] / "shared" / "golden"
    return full if full.is_dir() else DATA


class Golden(dict[str, np.ndarray]):
    """The arrays of one file, of which a reduced file keeps every n-th entry along some axes.

    The steps of an array are stated in the file under `steps/NAME`.
    """

    def kept(self, array: np.ndarray, name: str) -> np.ndarray:
        """Selects the entries of our array whose counterparts are in the file under this name."""
        return array[tuple(slice(None, None, int(step)) for step in self.get(f"steps/{name}", ()))]


def read(path: Path) -> bytes:
    """Reads a file, which may be compressed under its name with `.xz` appended."""
    return path.read_bytes() if path.exists() else lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes())


def load_arrays(path: Path) -> Golden:
    with np.load(io.BytesIO(read(path))) as arrays:
        return Golden(arrays)


def load_json(path: Path) -> Any:
    return json.loads(read(path))


def functions(name: str) -> Golden:
    """Loads the reduced numbers of single functions of dbolya/yolact."""
    return load_arrays(DATA / "yolact" / "functions" / f"{name}.npz")


def input_picture(name: str) -> np.ndarray:
    """Loads an input of the originals' runs, RGB."""
    return cv2.cvtColor(cv2.imread(str(DATA / "pictures" / f"{name}.png")), cv2.COLOR_BGR2RGB)


def post_processing(folder: Path) -> Golden:
    """Loads the detections of a run of dbolya/yolact at the picture's size, and their inputs.

    The inputs are boxes and soft masks. Each soft mask is cropped one cell outside its box, as in
    the original's `crop`.
    """
    post = load_arrays(folder / "post.npz")
    if "soft_masks" in post:
        return post
    detect, prototypes = load_arrays(folder / "detect.npz"), load_arrays(folder / "proto.npz")["proto"]
    boxes = detect["fast_box"]
    masks = 1 / (1 + np.exp(-np.einsum("hwk,dk->dhw", prototypes, detect["fast_mask"])))
    size = np.array(prototypes.shape[1::-1], np.float32)
    low, high = np.sort(boxes.reshape(-1, 2, 2) * size, axis=1).swapaxes(0, 1)
    low, high = np.maximum(low - 1, 0), np.minimum(high + 1, size)
    columns, rows = np.arange(size[0]), np.arange(size[1])
    inside_x = (columns >= low[:, :1]) & (columns < high[:, :1])
    inside_y = (rows >= low[:, 1:]) & (rows < high[:, 1:])
    soft = masks.astype(np.float32) * inside_y[:, :, None] * inside_x[:, None, :]
    return Golden(post | {"fast_box": boxes, "soft_masks": soft})
