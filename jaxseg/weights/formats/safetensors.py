"""Reading and writing the safetensors format.

A file consists of the length of a JSON header, the header with the types, shapes and positions of
the arrays, and the numbers. The format is so simple that its package is not needed.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxseg.errors import shortened
from jaxseg.weights.formats.files import WeightsError, replacing
from jaxseg.weights.formats.unpickle import Malformed, plain, sizes, wholes

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


# The largest header in bytes. It has about 120 bytes for each tensor, and the Python objects can
# take 40 times as much memory.
_MAX_HEADER = 2**21


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file, as views of it.

    Raises:
        WeightsError: the file cannot be read; the message is a sentence that begins with "it".
    """
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    try:
        header, numbers = _split(mapped)
        header.pop("__metadata__", None)
        return {name: _array(name, entry, numbers) for name, entry in header.items()}
    except WeightsError:
        raise
    except KeyError as error:
        raise WeightsError(f"it is damaged, or has numbers of a type that is not read: {shortened(error.args[0])}.") from None
    except (ValueError, TypeError, AttributeError, RecursionError, Malformed):
        raise WeightsError("it is cut short or damaged: its header is not valid.") from None


def _split(mapped: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the header and the bytes after it."""
    length = int.from_bytes(bytes(mapped[:8]), "little")
    if length > mapped.size - 8:
        raise WeightsError("it is cut short or damaged: its header does not end.")
    if length > _MAX_HEADER:
        raise WeightsError(f"it has a header of {length / 1e6:,.1f} MB, too long for weights; 2 MB are room for over ten thousand tensors.")
    return json.loads(bytes(mapped[8 : 8 + length]), object_pairs_hook=_object), mapped[8 + length :]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object, and refuses one that has a name twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise WeightsError("it is damaged: a name is in its header twice.")
    return made


def _array(name: str, entry: Any, numbers: np.ndarray) -> np.ndarray:
    dtype, shape, (start, end) = _DTYPES[entry["dtype"]], sizes(entry["shape"]), wholes(entry["data_offsets"])
    if not start <= end <= numbers.size or end - start != math.prod(shape) * dtype.itemsize:
        raise WeightsError(f"it is cut short or damaged: the numbers of {plain(name)} are not there.")
    return numbers[start:end].view(dtype).reshape(shape)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays with their names.

    Raises:
        WeightsError: the file cannot be written.
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
