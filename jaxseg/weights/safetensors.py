"""The safetensors format: the length of a JSON header, the header with types, shapes and places, the numbers.

It is this small, so it is read here, mapped into memory, and the package is not needed.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxseg.weights.files import WeightsError, replacing

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, views of it.

    Raises:
        WeightsError: in a sentence that begins with "it".
    """
    mapped = np.memmap(path, np.uint8, "r")
    (length,) = struct.unpack("<Q", bytes(mapped[:8]))
    numbers = mapped[8 + length :]
    try:
        header = json.loads(bytes(mapped[8 : 8 + length]))
        header.pop("__metadata__", None)
        arrays = {}
        for name, entry in header.items():
            dtype, shape, (start, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            if not 0 <= start <= end <= numbers.size or end - start != math.prod(shape) * dtype.itemsize:
                raise WeightsError(f"it is cut short or damaged: the numbers of {name} are not there.")
            arrays[name] = numbers[start:end].view(dtype).reshape(shape)
    except KeyError as error:
        raise WeightsError(f"it is damaged, or has numbers of a type that is not read: {error}.") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError("it is cut short or damaged: its header is not valid.") from None
    return arrays


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays under their names.

    Raises:
        WeightsError: where the file cannot be written.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header, position = {}, 0
    for name, value in arrays.items():
        header[name] = {"dtype": names[value.dtype], "shape": value.shape, "data_offsets": (position, position + value.nbytes)}
        position += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in arrays.values():
            file.write(value.tobytes())
