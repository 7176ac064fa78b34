"""Reading and writing PyTorch's files without PyTorch.

There are two containers: the zip archive of PyTorch 1.6 and later, which is also written here, and
the stream of pickles of earlier versions.
"""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxseg.errors import shortened
from jaxseg.weights.formats.files import WeightsError, replacing
from jaxseg.weights.formats.pickle_machine import MAX_INSTRUCTIONS, Malformed
from jaxseg.weights.formats.unpickle import TORCH_DTYPES, TORCH_STORAGES, Storage, plain, unpickle

# The first object of the stream, pickled with protocol 2.
LEGACY_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ALIGNMENT = 64
# The largest directory of a zip archive in bytes. It has about 100 bytes for each entry, and takes
# 20 times as much memory.
_MAX_DIRECTORY = 2**20
_PART = 2**18
# The number of bytes that an archive may unpack to in addition to four times its own size, and the
# largest amount of memory that an instruction of a pickle takes.
_MAX_UNPACKED = 76_000_000
_PER_INSTRUCTION = 128
# The largest numbers of instructions of the small pickles in a stream, which are its head and the
# list of its storages.
_MAX_HEAD, _MAX_LIST = 1000, MAX_INSTRUCTIONS // 5


class _BoundedReader(io.BufferedReader):
    """A file that refuses to read more at a time than a zip directory may have.

    The archive itself says how long its directory is, and may lie.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_DIRECTORY:
            raise WeightsError("it is a zip archive of too many entries, over ten thousand; save the state_dict() alone.")
        return super().read(size)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive whose entries can be read.

    Raises:
        WeightsError: the archive cannot be read; the message is a sentence that begins with "it".
    """
    with _BoundedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(info.flag_bits & 1 for info in entries):
            raise WeightsError("it is encrypted; unpack it with its password and pack it without.")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in entries):
            raise WeightsError("it is compressed in a way that is not read; save it without compression.")
        if len({info.filename for info in entries}) < len(entries):
            raise WeightsError("it is damaged: two of its entries have the same name.")
        yield archive


def check_unpacked(path: Path, size: int) -> None:
    """Refuses an archive that would take much more memory than its file.

    Args:
        path: the file.
        size: the amount of memory in bytes.

    Raises:
        WeightsError: it would; the message is a sentence that begins with "it".
    """
    packed = path.stat().st_size
    if size > 4 * packed + _MAX_UNPACKED:
        raise WeightsError(
            f"it takes up to {size / 1e6:,.0f} MB of memory, unpacked from {packed / 1e6:,.1f} MB; save it without compression."
        )


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads the bytes of an entry, whether it is compressed or not.

    Raises:
        WeightsError: there are fewer bytes than the archive says.
    """
    made = np.empty(info.file_size, np.uint8)
    with archive.open(info) as stream:
        for part in np.split(made, range(_PART, made.size, _PART)):
            if stream.readinto(part.data) < part.size:  # type: ignore[attr-defined]
                raise WeightsError(f"it is damaged: {plain(info.filename)} is cut short.")
    return made


def read_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    """Reads the object that `torch.save` wrote.

    Its tensors are views of the file, which is mapped into memory.

    Args:
        path: the file.
        archive: the same file, opened.

    Raises:
        WeightsError: the file cannot be read; the message is a sentence that begins with "it".
    """
    entries = {info.filename: info for info in archive.infolist()}
    root = next(name.removesuffix("data.pkl") for name in entries if name.split("/")[1:] == ["data.pkl"])
    order = f"{root}byteorder"
    if order in entries and archive.open(order).read(len("little")) != b"little":
        raise WeightsError("it was written on a big-endian machine; save it on a little-endian one.")
    program = entries.pop(f"{root}data.pkl")
    compressed = sum(info.file_size for info in entries.values() if info.compress_type != zipfile.ZIP_STORED)
    # The pickle takes its own size, and the values that it makes take up to three times as much.
    check_unpacked(path, compressed + 4 * program.file_size + _PER_INSTRUCTION * min(program.file_size, MAX_INSTRUCTIONS))
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    storages: dict[str, Storage] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> Storage:
        found = _storage_of(storages, key, dtype, count)
        if found.values is None:
            info = entries.get(f"{root}data/{key}")
            if info is None or info.file_size < count * dtype.itemsize:
                raise WeightsError(f"it is damaged: the numbers under data/{plain(key)} are missing or too few.")
            values = _stored(mapped, info) if info.compress_type == zipfile.ZIP_STORED else unpacked(archive, info)
            found.values = values[: count * dtype.itemsize].view(dtype)
        return found

    return unpickle(io.BytesIO(unpacked(archive, program).data), storage)


def _storage_of(storages: dict[str, Storage], key: str, dtype: np.dtype, count: int) -> Storage:
    """Returns the storage with a key, which must always have the same type and size."""
    found = storages.setdefault(key, Storage(dtype, count))
    if (found.dtype, found.count) != (dtype, count):
        raise Malformed("a storage of two types or sizes")
    return found


def _stored(mapped: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """Returns the bytes of an uncompressed entry as a view of the file."""
    begin = max(info.header_offset, 0)
    header = bytes(mapped[begin : begin + 30])
    name, extra = struct.unpack("<HH", header[26:30]) if len(header) == 30 and header[:4] == b"PK\x03\x04" else (0, mapped.size)
    start = begin + 30 + name + extra
    if start + info.file_size > mapped.size:
        raise WeightsError(f"it is damaged: {plain(info.filename)} is cut short.")
    return mapped[start : start + info.file_size]


def read_legacy(path: Path) -> Any:
    """Reads the object in a stream of pickles, which the bytes of the storages follow.

    Its tensors are views of the file.

    Raises:
        WeightsError: the file cannot be read; the message is a sentence that begins with "it".
    """
    storages: dict[str, Storage] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> Storage:
        return _storage_of(storages, key, dtype, count)

    with path.open("rb") as file:
        unpickle(file, limit=_MAX_HEAD)
        version = unpickle(file, limit=_MAX_HEAD)
        if version != 1001:
            raise WeightsError(f"it is a PyTorch stream of version {shortened(version)}; only version 1001 exists.")
        system = unpickle(file, limit=_MAX_HEAD)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise WeightsError("it was written on a big-endian machine; save it on a little-endian one.")
        tree = unpickle(file, storage)
        keys = unpickle(file, limit=_MAX_LIST)
        position = file.tell()
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise WeightsError(f"it is damaged: nothing refers to the numbers under {shortened(key)}.")
        found = storages[key]
        start, size = position + 8, found.count * found.dtype.itemsize
        if start + size > mapped.size or struct.unpack("<q", bytes(mapped[position:start]))[0] != found.count:
            raise WeightsError("it is cut short or damaged: the numbers of its tensors do not end where they should.")
        found.values = mapped[start : start + size].view(found.dtype)
        position = start + size
    return tree


def write_zip(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict as `torch.save` does.

    `torch.load` of PyTorch 1.6 and later reads it, also with `weights_only`.

    Raises:
        WeightsError: the file cannot be written, or PyTorch does not have the type of an array.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:  # type: ignore[type-var]
        _add(archive, file, "archive/data.pkl", state_dict_pickle(arrays))
        _add(archive, file, "archive/byteorder", b"little")
        for key, value in enumerate(arrays.values()):
            _add(archive, file, f"archive/data/{key}", value.tobytes())
        _add(archive, file, "archive/version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    """Adds an entry whose bytes begin at a multiple of 64, which PyTorch needs to map files."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    begin = file.seek(0, os.SEEK_END) + 30 + len(name) + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, data)


def state_dict_pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the pickle that describes the tensors.

    Its instructions are written out here, because Python's pickler needs PyTorch's own functions.
    """
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    storages = {dtype: name for name, dtype in TORCH_STORAGES.items()}

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()

    def whole(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    def row(values: Iterable[bytes]) -> bytes:
        return pickle.MARK + b"".join(values) + pickle.TUPLE

    def name_of(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    empty = name_of("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO + b"\x02", empty, pickle.MARK]
    for key, (name, value) in enumerate(arrays.items()):
        if value.dtype not in names:
            raise WeightsError(f"{name} is an array of {value.dtype}, which PyTorch does not have.")
        strides = [int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim)]
        kind = name_of("torch", storages[names[value.dtype]])
        storage = row([text("storage"), kind, text(str(key)), text("cpu"), whole(value.size)])
        shape = [row(map(whole, value.shape)), row(map(whole, strides))]
        tensor = row([storage + pickle.BINPERSID, whole(0), *shape, pickle.NEWFALSE, empty])
        parts += [text(name), name_of("torch._utils", "_rebuild_tensor_v2"), tensor, pickle.REDUCE]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])
