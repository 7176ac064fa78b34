"""PyTorch's two containers, without PyTorch: the zip archive (since 1.6) and the stream of pickles before it; a writer of the former."""

import functools
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxseg.weights.files import WeightsError, replacing
from jaxseg.weights.unpickle import TORCH_DTYPES, TORCH_STORAGES, Storage, unpickle

# The first object of the stream, as protocol 2 pickles it.
LEGACY_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ALIGNMENT = 64


def read_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    """The object that `torch.save` wrote; its tensors are views of the file, which is mapped into memory.

    Args:
        path: of the file.
        archive: the same file, opened.

    Raises:
        WeightsError: in a sentence that begins with "it".
    """
    entries = {info.filename: info for info in archive.infolist()}
    root = next(name.removesuffix("data.pkl") for name in entries if name.split("/")[1:] == ["data.pkl"])
    if any(info.flag_bits & 1 for info in entries.values()):
        raise WeightsError("it is encrypted; unpack it with its password and pack it without.")
    order = f"{root}byteorder"
    if order in entries and archive.read(order) != b"little":
        raise WeightsError("it was written on a big-endian machine; save it on a little-endian one.")
    mapped = np.memmap(path, np.uint8, "r")

    @functools.cache
    def storage(key: str, dtype: np.dtype, count: int) -> Storage:
        info = entries.get(f"{root}data/{key}")
        if info is None or info.file_size < count * dtype.itemsize:
            raise WeightsError(f"it is damaged: the numbers under data/{key} are missing or too few.")
        values = _stored(mapped, info) if info.compress_type == zipfile.ZIP_STORED else np.frombuffer(archive.read(info), np.uint8)
        made = Storage(dtype)
        made.values = values[: count * dtype.itemsize].view(dtype)
        return made

    return unpickle(io.BytesIO(archive.read(f"{root}data.pkl")), storage)


def _stored(mapped: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of an entry that is not compressed, where they lie in the file."""
    header = bytes(mapped[info.header_offset : info.header_offset + 30])
    name, extra = struct.unpack("<HH", header[26:30]) if len(header) == 30 and header[:4] == b"PK\x03\x04" else (0, mapped.size)
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > mapped.size:
        raise WeightsError(f"it is damaged: {info.filename} is cut short.")
    return mapped[start : start + info.file_size]


def read_legacy(path: Path) -> Any:
    """The object in a stream of pickles followed by the storages' bytes; its tensors are views of the file.

    Raises:
        WeightsError: in a sentence that begins with "it".
    """
    storages: dict[str, tuple[Storage, int]] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> Storage:
        return storages.setdefault(key, (Storage(dtype), count))[0]

    with path.open("rb") as file:
        unpickle(file)
        version = unpickle(file)
        if version != 1001:
            raise WeightsError(f"it is a PyTorch stream of version {version!r}; 1001 is the one there is.")
        system = unpickle(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise WeightsError("it was written on a big-endian machine; save it on a little-endian one.")
        tree = unpickle(file, storage)
        keys = unpickle(file)
        position = file.tell()
    mapped = np.memmap(path, np.uint8, "r")
    for key in keys if isinstance(keys, list) else []:
        if key not in storages:
            raise WeightsError(f"it is damaged: nothing refers to the numbers under {key!r}.")
        found, count = storages[key]
        start, size = position + 8, count * found.dtype.itemsize
        if start + size > mapped.size or struct.unpack("<q", bytes(mapped[position:start]))[0] != count:
            raise WeightsError("it is cut short or damaged: the numbers of its tensors do not end where they should.")
        found.values = mapped[start : start + size].view(found.dtype)
        position = start + size
    return tree


def write_zip(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict as `torch.save` does, for `torch.load` of PyTorch 1.6 or newer, `weights_only` included.

    Raises:
        WeightsError: where the file cannot be written, or an array has a type that PyTorch does not.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:  # type: ignore[type-var]
        _add(archive, file, "archive/data.pkl", state_dict_pickle(arrays))
        _add(archive, file, "archive/byteorder", b"little")
        for key, value in enumerate(arrays.values()):
            _add(archive, file, f"archive/data/{key}", value.tobytes())
        _add(archive, file, "archive/version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    """An entry whose bytes begin at a multiple of 64, as PyTorch places them to map files."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    begin = file.seek(0, os.SEEK_END) + 30 + len(name) + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, data)


def state_dict_pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle that describes the tensors. Its instructions are spelled out, for Python's pickler wants the real functions."""
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    storages = {dtype: name for name, dtype in TORCH_STORAGES.items()}

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()

    def whole(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    def row(*values: bytes) -> bytes:
        return pickle.MARK + b"".join(values) + pickle.TUPLE

    def name_of(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    empty = name_of("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO + b"\x02", empty, pickle.MARK]
    for key, (name, value) in enumerate(arrays.items()):
        if value.dtype not in names:
            raise WeightsError(f"{name} is an array of {value.dtype}, which PyTorch does not have.")
        strides = [int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim)]
        storage = row(text("storage"), name_of("torch", storages[names[value.dtype]]), text(str(key)), text("cpu"), whole(value.size))
        tensor = row(storage + pickle.BINPERSID, whole(0), row(*map(whole, value.shape)), row(*map(whole, strides)), pickle.NEWFALSE, empty)
        parts += [text(name), name_of("torch._utils", "_rebuild_tensor_v2"), tensor, pickle.REDUCE]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])
