"""Safe unpickling of tensors, NumPy arrays and plain containers.

A pickle is a program that calls functions by their names. Here each permitted name stands for a
function or class of this file, which only keeps its arguments: sizes, bytes, keys of storages. All
other names are refused. Only arrays and types accept a state. PyTorch's and NumPy's own classes,
whose C code trusts its input, are never called.
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

# The types by PyTorch's names, little-endian as all machines of today write them.
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
# The limit of NumPy before version 2.
_MAX_AXES = 32
# No machine can address more numbers of 8 bytes.
_MAX_NUMBERS = 2**60
# The size of a tensor up to which it may have more numbers than its storage, by repeating them.
_MAX_REPEATED = 2**20
# The largest number of characters of a file that a message quotes.
_MAX_LENGTH = 200


class Storage:
    """A sequence of numbers that tensors share; the reader of the container sets `values`."""

    __slots__ = ("count", "dtype", "values")

    def __init__(self, dtype: np.dtype, count: int = 0):
        self.dtype, self.count = dtype, count
        self.values: np.ndarray | None = None


class View:
    """A storage and an offset in it, which is not 0 only in files of PyTorch 0.3 and before."""

    __slots__ = ("offset", "storage")

    def __init__(self, storage: Storage, offset: int):
        self.storage, self.offset = storage, offset


class Tensor:
    """A view of a storage, as PyTorch's files describe it; `array` returns the numbers."""

    __slots__ = ("_offset", "_shape", "_storage", "_strides")

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *_: object):
        if not isinstance(storage, View):
            raise Malformed("a tensor without a storage")
        self._storage, self._offset = storage.storage, storage.offset + _whole(offset)
        self._shape, self._strides = sizes(shape), wholes(strides)
        if len(self._shape) != len(self._strides):
            raise Malformed("a tensor with more sizes than strides")

    def array(self) -> np.ndarray:
        """Returns the tensor as a read-only view of its storage."""
        values = self._storage.values
        if values is None:
            raise Malformed("a tensor whose storage is not there")
        if 0 in self._shape:
            return np.empty(self._shape, values.dtype)
        last = self._offset + sum((size - 1) * stride for size, stride in zip(self._shape, self._strides, strict=True))
        if last >= values.size or math.prod(self._shape) > max(values.size, _MAX_REPEATED):
            raise Malformed("a tensor that reaches beyond its storage")
        # Along an axis of size 1 the stride can be any number, even one too large for NumPy.
        strides = [stride * values.itemsize if size > 1 else 0 for size, stride in zip(self._shape, self._strides, strict=True)]
        return np.lib.stride_tricks.as_strided(values[self._offset :], self._shape, strides, writeable=False)


class Array(Stateful):
    """A NumPy array, which has no values until its state is set."""

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
        """Returns the array, which is read-only."""
        if self._value is None:
            raise Malformed("an array without values")
        return self._value


class _Dtype(Stateful):
    """A type of numbers; the state of NumPy's types is their byte order."""

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
    """An ordered dictionary of PyTorch, whose attributes are ignored."""

    __slots__ = ()

    def set_state(self, state: object) -> None:
        pass

    @classmethod
    def of_items(cls, items: Any = ()) -> "_Dict":
        """Makes it from pairs, as Python 2 pickles it, or from the dictionary of a counter."""
        if isinstance(items, dict):
            return cls(items)
        return cls((checked_key(key), value) for key, value in items)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise Malformed(f"a size of {shortened(value)}")
    return value


def wholes(values: Any) -> tuple[int, ...]:
    """Checks sizes, strides or offsets and returns them as a tuple.

    Raises:
        Malformed: they are not whole numbers, or there are too many.
    """
    if not isinstance(values, tuple | list) or len(values) > _MAX_AXES:
        raise Malformed(f"sizes that are no list of at most {_MAX_AXES} numbers")
    return tuple(map(_whole, values))


def sizes(values: Any) -> tuple[int, ...]:
    """Checks the shape of an array and returns it as a tuple.

    Raises:
        Malformed: the sizes are not whole numbers, too many or too large.
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
    # Checkpoints hold the milestones of PyTorch's schedules as a counter.
    "collections.Counter": _Dict.of_items,
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_tensor_v2": Tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": sizes,
    # Pickles of protocol 2 write bytes in the first way, and empty bytes in the second.
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",
    "numpy.ndarray": Array,
    "numpy.dtype": _Dtype.of_numpy,
    # NumPy 2 has moved these from `core` to `_core`.
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
    """Returns the function or type that a name in a pickle stands for."""
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
    """Returns a name from a file in a form that fits into a message."""
    return name if name.isprintable() and len(name) <= _MAX_LENGTH else shortened(name)


def reason(error: Exception) -> str:
    """Returns the text of an exception in a form that fits into a message."""
    return plain(" ".join(str(error).split())[:_MAX_LENGTH]) or type(error).__name__


def unpickle(
    file: BinaryIO,
    storage: Callable[[str, np.dtype, int], Storage] | None = None,
    encoding: str = "utf-8",
    limit: int = MAX_INSTRUCTIONS,
) -> Any:
    """Reads the next pickle of a file.

    Args:
        file: the file, whose position is after the pickle afterwards.
        storage: a function that returns the storage with a key, a type and a count of numbers; None
            if no storage lies outside the pickle.
        encoding: the encoding of Python 2's text.
        limit: the largest number of instructions in the pickle.

    Returns:
        Plain containers, in which tensors and arrays are `Tensor` and `Array`.

    Raises:
        WeightsError: the pickle needs another function, cannot be read, or is truncated; the
            message is a sentence that begins with "it".
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
        return Machine(file, _find, refer, encoding=encoding, limit=limit).run()
    except WeightsError:
        raise
    # A truncated or invented pickle can raise any kind of exception.
    except Exception as error:
        raise WeightsError(f"it is cut short or damaged, or no file of weights ({reason(error)}).") from None
