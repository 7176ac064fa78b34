"""Unpickling that can run nothing: tensors, NumPy arrays and plain containers; every other global is refused by its name.

A pickle is a program that calls what it names. Here each name it may use leads to a stand-in of this file, which only
keeps what it is given: sizes, bytes, keys of storages. A pickle can give a state to arrays and types alone, and PyTorch's and
NumPy's own classes, whose C code trusts its input, never meet it.
"""

import math
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxseg.errors import shortened
from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.pickle_machine import MAX_INSTRUCTIONS, Function, Machine, Malformed, Stateful, checked_key

# What PyTorch calls them, little-endian as every machine of today writes them.
TORCH_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(jnp.bfloat16),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
TORCH_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_NUMPY_CODE = re.compile(r"[<>=|]?(?:f[248]|[iu][1248]|b1)")
# As many as NumPy had until its version 2.
_MAX_AXES = 32
# More numbers, of at most 8 bytes each, no machine can address.
_MAX_NUMBERS = 2**60
# So many numbers a tensor may have by repeating those of its storage.
_MAX_REPEATED = 2**20
# Characters of a file that a sentence repeats.
_MAX_LENGTH = 200


class Storage:
    """A row of numbers that tensors share; the reader of the container fills `values`."""

    __slots__ = ("count", "dtype", "values")

    def __init__(self, dtype: np.dtype, count: int = 0):
        self.dtype, self.count = dtype, count
        self.values: np.ndarray | None = None


class View:
    """What a tensor looks at: a storage, from its beginning but in files of PyTorch 0.3 and before."""

    __slots__ = ("offset", "storage")

    def __init__(self, storage: Storage, offset: int):
        self.storage, self.offset = storage, offset


class Tensor:
    """A view of a storage, as PyTorch's files describe one; `array` looks at the numbers."""

    __slots__ = ("_offset", "_shape", "_storage", "_strides")

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *_: object):
        if not isinstance(storage, View):
            raise Malformed("a tensor without a storage")
        self._storage, self._offset = storage.storage, storage.offset + _whole(offset)
        self._shape, self._strides = sizes(shape), wholes(strides)
        if len(self._shape) != len(self._strides):
            raise Malformed("a tensor with more sizes than strides")

    def array(self) -> np.ndarray:
        """The tensor, read-only and without a copy."""
        values = self._storage.values
        if values is None:
            raise Malformed("a tensor whose storage is not there")
        if 0 in self._shape:
            return np.empty(self._shape, values.dtype)
        last = self._offset + sum((size - 1) * stride for size, stride in zip(self._shape, self._strides, strict=True))
        if last >= values.size or math.prod(self._shape) > max(values.size, _MAX_REPEATED):
            raise Malformed("a tensor that reaches beyond its storage")
        # Along an axis of size 1 the stride can be any number, even one that NumPy cannot hold.
        strides = [stride * values.itemsize if size > 1 else 0 for size, stride in zip(self._shape, self._strides, strict=True)]
        return np.lib.stride_tricks.as_strided(values[self._offset :], self._shape, strides, writeable=False)


class Array(Stateful):
    """A NumPy array; empty until its state comes."""

    __slots__ = ("_value",)

    def __init__(self, *_: object):
        self._value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self._value = _from_bytes(data, dtype, shape, "F" if fortran else "C")

    @classmethod
    def from_buffer(cls, data: Any, dtype: Any, shape: Any, order: Any) -> "Array":
        made = cls()
        made._value = _from_bytes(data, dtype, shape, order)
        return made

    def array(self) -> np.ndarray:
        """The array, read-only."""
        if self._value is None:
            raise Malformed("an array without values")
        return self._value


class _Dtype(Stateful):
    """A type of numbers; NumPy's tells its byte order in a state."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype):
        self.value = value

    def set_state(self, state: Any) -> None:
        self.value = self.value.newbyteorder(">" if state[1] == ">" else "=")

    @classmethod
    def of_numpy(cls, code: Any, *_: object) -> "_Dtype":
        if not isinstance(code, str) or not _NUMPY_CODE.fullmatch(code):
            raise WeightsError(f"it holds a NumPy array of type {shortened(code)}; weights are arrays of plain numbers.")
        return cls(np.dtype(code))


class _Dict(dict, Stateful):
    """PyTorch's ordered dictionaries have attributes; nobody needs them."""

    __slots__ = ()

    def set_state(self, state: object) -> None:
        pass

    @classmethod
    def of_items(cls, items: Any = ()) -> "_Dict":
        """Python 2 lists the items of an ordered dictionary as pairs, and a counter has a plain dictionary."""
        if isinstance(items, dict):
            return cls(items)
        return cls((checked_key(key), value) for key, value in items)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise Malformed(f"a size of {shortened(value)}")
    return value


def wholes(values: Any) -> tuple[int, ...]:
    """Sizes, strides or offsets.

    Raises:
        Malformed: they are something else than whole numbers, or too many.
    """
    if not isinstance(values, tuple | list) or len(values) > _MAX_AXES:
        raise Malformed(f"sizes that are no list of at most {_MAX_AXES} numbers")
    return tuple(map(_whole, values))


def sizes(values: Any) -> tuple[int, ...]:
    """The shape of an array that NumPy can make.

    Raises:
        Malformed: they are something else than whole numbers, too many or too large.
    """
    shape = wholes(values)
    if math.prod(max(size, 1) for size in shape) >= _MAX_NUMBERS:
        raise Malformed("an array larger than any machine")
    return shape


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    # Pickles of Python 2 hold bytes as text.
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise Malformed("an array that is no row of bytes")
    shape = sizes(shape)
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise Malformed("an array with too few or too many bytes")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Malformed(f"bytes as text in {shortened(encoding)}")
    return text.encode("latin1")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Dict.of_items,
    # Milestones of PyTorch's schedules, beside the weights.
    "collections.Counter": _Dict.of_items,
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_tensor_v2": Tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": sizes,
    # Bytes, as a pickle of protocol 2 writes them; none at all in the second way.
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",
    "numpy.ndarray": Array,
    "numpy.dtype": _Dtype.of_numpy,
    # NumPy 2 has moved them.
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in {
            "multiarray._reconstruct": Array,
            "multiarray.scalar": lambda dtype, data: Array.from_buffer(data, dtype, (), "C"),
            "numeric._frombuffer": Array.from_buffer,
        }.items()
    },
}


def _find(module: str, name: str) -> Any:
    """What a name in a pickle stands for."""
    whole = f"{module}.{name}"
    if whole in _FUNCTIONS:
        return Function(_FUNCTIONS[whole])
    if module == "torch" and (name in TORCH_DTYPES or name in TORCH_STORAGES):
        return _Dtype(TORCH_DTYPES[TORCH_STORAGES.get(name, name)])
    raise WeightsError(
        f"it asks for {plain(whole)}, which is no tensor, array or plain container, so it is refused and nothing of it is run; "
        "of a PyTorch model, save the state_dict()."
    )


def plain(name: str) -> str:
    """A name from a file as a sentence can have it."""
    return name if name.isprintable() and len(name) <= _MAX_LENGTH else shortened(name)


def reason(error: Exception) -> str:
    """What an exception says, as a sentence can have it."""
    return plain(" ".join(str(error).split())[:_MAX_LENGTH]) or type(error).__name__


def unpickle(
    file: BinaryIO,
    storage: Callable[[str, np.dtype, int], Storage] | None = None,
    encoding: str = "utf-8",
    limit: int = MAX_INSTRUCTIONS,
) -> Any:
    """The next pickle of a file: plain containers with `Tensor` and `Array` in them.

    Args:
        file: stands behind the pickle afterwards.
        storage: gives the storage with a key, a type and a count of numbers; None where there are none outside the pickle.
        encoding: of Python 2's text.
        limit: of instructions in the pickle.

    Raises:
        WeightsError: it asks for something else, cannot be read, or is cut short. The sentence begins with "it".
    """

    def refer(identifier: Any) -> View:
        if storage is None or type(identifier) is not tuple or len(identifier) not in (5, 6):
            raise Malformed("a reference to something outside the file")
        kind, dtype, key, _, count, *view = identifier
        if kind != "storage" or not isinstance(dtype, _Dtype) or not isinstance(key, str):
            raise Malformed(f"a reference to {shortened(kind)}")
        found = storage(key, dtype.value, _whole(count))
        return View(found, _whole(view[0][1]) if view and view[0] is not None else 0)

    try:
        return Machine(file, _find, refer, encoding, limit).run()
    except WeightsError:
        raise
    # A pickle that is cut short or made up raises whatever its instructions run into.
    except Exception as error:
        raise WeightsError(f"it is cut short or damaged, or no file of weights ({reason(error)}).") from None
