"""Reading files of weights in any known format, as a flat mapping from names to arrays."""

import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import numpy as np

from jaxseg.errors import shortened
from jaxseg.weights.formats import pytorch, run_folder
from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.safetensors import read_safetensors
from jaxseg.weights.formats.unpickle import Array, Malformed, Tensor, plain, reason, sizes, unpickle

# The keys under which trainers' checkpoints and the model zoos of detectron2 and Detectron keep the
# weights.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "blobs")
_FORMATS = "a .pth or .pt of torch.save, a .pkl of a model zoo, .npz, .safetensors, or a run folder of train.py"
# The starts of files that a failed download leaves instead of weights.
_IMPOSTORS = {
    b"<": "it is a web page, not weights; download it again, perhaps after signing in",
    b"version https://git-lfs": "it is a pointer of Git LFS, not weights; fetch it with `git lfs pull`",
}
# The largest numbers of characters in the header of a .npy array (NumPy writes about 120) and in
# the name of a tensor.
_MAX_HEAD, _MAX_NAME = 1000, 500


def read_weights(path: str | Path, *, step: str | int = "best") -> dict[str, np.ndarray]:
    """Reads the arrays of a file or run folder, by their names in it.

    The content of a file decides its format, not its name. The arrays of `.pth` and `.safetensors`
    files are views of the file, which is mapped into memory, and should be copied. No code in a
    pickle is run, and no file, even a malicious one, takes more memory than four times its size and
    100 MB.

    Args:
        path: a file in one of the formats of the README, or a run folder.
        step: the checkpoint of a run folder: "best", "latest" or a number.

    Raises:
        WeightsError: the file cannot be read; the message is one sentence with the path.
        CheckpointError: there is no such checkpoint in the run folder.
    """
    path = Path(path)
    if path.is_dir():
        return flax.traverse_util.flatten_dict(run_folder.read_run(path, step), sep="/")
    if not path.is_file():
        raise WeightsError(f"There are no weights at {path}; give {_FORMATS}.")
    try:
        return _arrays(_read(path))
    except WeightsError as error:
        raise WeightsError(f"{path} cannot be loaded: {error}") from None
    except Malformed as error:
        raise WeightsError(f"{path} cannot be loaded: it is damaged and describes {error}.") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}).") from None
    # The libraries raise many kinds of exceptions for damaged files.
    except Exception as error:
        raise WeightsError(f"{path} cannot be loaded: it is cut short or damaged ({reason(error)}).") from None


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(32)
        file.seek(0)
        if not head:
            raise WeightsError("it is empty; download or save it again.")
        if head.startswith(b"PK"):
            return _read_archive(path)
        if pytorch.LEGACY_START in head[:16]:
            return pytorch.read_legacy(path)
        if head[8:9] == b"{":
            return read_safetensors(path)
        for start, sentence in _IMPOSTORS.items():
            if head.lstrip().startswith(start):
                raise WeightsError(f"{sentence}.")
        # Detectron's files were pickled by Python 2.
        if head[:1] == pickle.PROTO or path.suffix in (".pkl", ".pickle"):
            return unpickle(file, encoding="latin1")
    raise WeightsError(f"it is none of the formats that are read; give {_FORMATS}.")


def _read_archive(path: Path) -> Any:
    with pytorch.open_archive(path) as archive:
        names = archive.namelist()
        if any(name.split("/")[1:] == ["data.pkl"] for name in names):
            return pytorch.read_zip(path, archive)
        if not names or not all(name.endswith(".npy") for name in names):
            raise WeightsError("it is a zip archive of something else; one of torch.save holds data.pkl, one of NumPy .npy files.")
        pytorch.check_unpacked(path, sum(info.file_size for info in archive.infolist()))
        return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads an entry of a .npz; NumPy only reads its header, because it trusts the sizes there."""
    data = pytorch.unpacked(archive, info)
    head = io.BytesIO(data[: 2 * _MAX_HEAD].data)
    if np.lib.format.read_magic(head) != (1, 0):
        raise WeightsError(f"its {plain(info.filename)} is no array of plain numbers.")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(head, max_header_size=_MAX_HEAD)
    if dtype.kind not in "biufcSU" or not dtype.itemsize:
        raise WeightsError(f"its {plain(info.filename)} is an array of {plain(str(dtype))}; weights are arrays of plain numbers.")
    count = math.prod(sizes(shape))
    if count * dtype.itemsize > data.size - head.tell():
        raise WeightsError(f"it is damaged: the numbers of {plain(info.filename)} are too few.")
    return np.frombuffer(data, dtype, count, head.tell()).reshape(shape, order="F" if fortran else "C")


def _arrays(tree: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of a file's content, in which weights may be one of several entries."""
    if isinstance(tree, Mapping):
        tree = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), tree)
    if not isinstance(tree, Mapping) or not tree:
        raise WeightsError(f"it holds a {type(tree).__name__.lstrip('_').lower()}, not weights by name.")
    arrays = {}
    for name, value in tree.items():
        value = value.array() if isinstance(value, Tensor | Array) else value
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise WeightsError(f"its entry {shortened(name)} is no tensor; a file of weights holds tensors by name.")
        if len(name) > _MAX_NAME or not name.isprintable():
            raise WeightsError(f"its entry {shortened(name)} has no name of a tensor, which is short and can be printed.")
        arrays[name] = value
    return arrays
