"""A safe interpreter for the pickles that hold weights.

A pickle is a program for a machine with a stack and a memo. Python's machine trusts the lengths and
numbers in it, so that nine bytes can allocate gigabytes. This one knows only the instructions that
writers of weights use, makes plain containers, and calls only the functions that its caller
provides. It takes about 100 bytes of memory for each instruction, and in addition at most three
times the size of the pickle.
"""

import codecs
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from jaxseg.weights.formats.files import WeightsError

# A state dict has about 40 instructions for each tensor.
MAX_INSTRUCTIONS = 500_000
# The largest size in bytes of all texts whose characters take two or four bytes each in memory. All
# names of weights together are shorter.
_MAX_WIDE = 2**20
# The largest total length of texts that are passed to functions more than once, as short texts such
# as "latin1" are.
_MAX_REPEATED_TEXT = 2**20
_MAX_ARGUMENTS = 16
# The largest lengths in bytes of a line with a number or a name, and of a whole number.
_SHORT_LINE = 256
_MAX_NUMBER = 255
# Larger whole numbers can be chosen so that all have the same hash, which makes a dictionary slow.
_MAX_KEY = 2**60
# An escaped character that is not in Latin-1.
_WIDE_ESCAPE = re.compile(rb"\\(?:u(?!00)|U)")


class Malformed(Exception):
    """A pickle does something that no writer of weights does."""


class Function:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        self.call = call


class Stateful:
    """The base class of objects whose state a pickle may set."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


def checked_key(key: Any) -> Any:
    """Returns a key of a dictionary, and refuses keys whose hash can be slow, such as tuples."""
    if type(key) not in (str, bytes, int, float, bool, type(None)) or (type(key) is int and abs(key) >= _MAX_KEY):
        raise Malformed("a key of a dictionary that is neither text nor a small number")
    return key


class Machine:
    """An interpreter for one pickle.

    Args:
        file: a file whose position is at the pickle, and after it afterwards.
        find: a function that returns what a module and a name stand for.
        refer: a function that returns what a reference to something outside the pickle stands for.
        encoding: the encoding of Python 2's texts, "utf-8" or "latin1".
        limit: the largest number of instructions.
    """

    def __init__(
        self, file: BinaryIO, find: Callable[[str, str], Any], refer: Callable[[Any], Any], *, encoding: str, limit: int = MAX_INSTRUCTIONS
    ):
        self.find, self.refer, self.encoding, self.limit = find, refer, encoding, limit
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.instructions = 0
        self._file, begin = file, file.tell()
        self._size = self._left = file.seek(0, 2) - begin
        file.seek(begin)
        self._wide = self._passed_text = self._passed_items = 0

    def run(self) -> Any:
        """Runs the pickle and returns the object that it makes."""
        while (code := self.take(1)) != pickle.STOP:
            self.instructions += 1
            if self.instructions > self.limit:
                raise WeightsError(
                    f"it is a pickle of over {self.limit:,} instructions, too many for weights; save the state_dict() alone."
                )
            if code in _VALUES:
                self.stack.append(_VALUES[code](self))
            elif code in _ACTIONS:
                _ACTIONS[code](self)
            else:
                raise Malformed(f"an instruction {code!r}, which no writer of weights uses")
        return self.stack.pop()

    # ---- Arguments in the file ----

    def take(self, count: int) -> bytes:
        """Reads the next bytes, and refuses to read more than there are."""
        data = self._file.read(count) if count <= self._left else b""
        if len(data) != count:
            raise Malformed("a pickle that ends too early")
        self._left -= count
        return data

    def line(self, limit: int | None = None) -> bytes:
        """Reads the next line, without its end."""
        data = self._file.readline(self._left if limit is None else min(limit, self._left))
        if not data.endswith(b"\n"):
            raise Malformed("a pickle with a line that does not end")
        self._left -= len(data)
        return data[:-1]

    def number(self, code: str) -> Any:
        """Reads a number with the format `code` of `struct`."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def data(self, code: str) -> bytes:
        """Reads bytes that follow their count, which has the format `code` of `struct`."""
        return self.take(self.number(code))

    def text(self, data: bytes, encoding: str) -> str:
        """Decodes a text of bounded size in memory.

        In UTF-8, characters that take one byte in memory have no byte above C3.
        """
        if encoding == "utf-8" and not data.isascii() and np.frombuffer(data, np.uint8).max() > 0xC3:
            self._count_wide(data)
        return str(data, encoding)

    def escaped_text(self, data: bytes) -> str:
        """Decodes the text of a line, in which some characters are escaped."""
        if _WIDE_ESCAPE.search(data):
            self._count_wide(data)
        return str(data, "raw-unicode-escape")

    def _count_wide(self, data: bytes) -> None:
        self._wide += len(data)
        if self._wide > _MAX_WIDE:
            raise Malformed("over a megabyte of text that is not Latin-1")

    # ---- Stack and memo ----

    def since_mark(self) -> list[Any]:
        """Removes the last mark and the values above it from the stack, and returns the values."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def row(self, count: int) -> tuple[Any, ...]:
        """Removes the last `count` values from the stack and returns them as a tuple."""
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise Malformed("a tuple of too few values")
        del self.stack[-count:]
        return items

    def remember(self, index: int) -> None:
        """Stores the last value in the memo.

        Indices in the memo count up, so that none exceeds the number of instructions so far.
        """
        if not 0 <= index <= self.instructions:
            raise Malformed("a pickle that remembers something under a number too high")
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Malformed("values that are put into something else than a list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise Malformed("keys that are put into something else than a dictionary")
        self.stack[-1].update(dictionary(items))

    # ---- Names and calls ----

    def name(self) -> Any:
        """Returns what the module and the name on the stack stand for."""
        module, name = self.row(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a name that is no text")
        return self.find(module, name)

    def call(self) -> Any:
        function, arguments = self.row(2)
        if type(function) is not Function or type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
            raise Malformed("a call of something that is no function")
        self._limit_arguments(arguments)
        return function.call(*arguments)

    def set_state(self) -> None:
        target, state = self.row(2)
        if not isinstance(target, Stateful):
            raise Malformed("a state of something that has none")
        self._limit_arguments((state,))
        target.set_state(state)
        self.stack.append(target)

    def _limit_arguments(self, values: Iterable[Any]) -> None:
        """Limits the arguments of all calls together to the size of what the pickle has made.

        The limit is needed because functions copy their arguments.
        """
        for value in values:
            self._count(value)
            if isinstance(value, tuple | list):
                for item in value:
                    self._passed_text += len(item) if type(item) is str else 0
        if self._passed_text > self._size - self._left + _MAX_REPEATED_TEXT:
            raise Malformed("the same text for many arrays")

    def _count(self, value: Any) -> None:
        self._passed_text += len(value) if type(value) is str else 0
        self._passed_items += len(value) if isinstance(value, tuple | list | dict) else 0
        if self._passed_items > self.instructions:
            raise Malformed("the same values for many containers")


def dictionary(items: list[Any]) -> dict[Any, Any]:
    """Makes a dictionary from a list in which keys and values alternate."""
    return {checked_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _short_number(machine: Machine, code: str) -> int:
    if (count := machine.number(code)) > _MAX_NUMBER:
        raise Malformed("a whole number of very many digits")
    return int.from_bytes(machine.take(count), "little", signed=True)


def _decimal_number(machine: Machine) -> int | bool:
    """Reads a decimal number; 00 and 01 are false and true."""
    line = machine.line(_SHORT_LINE)
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line.removesuffix(b"L"))


def _quoted(machine: Machine) -> str:
    line = machine.line()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise Malformed("a text without its quotes")
    return machine.text(codecs.escape_decode(line[1:-1])[0], machine.encoding)  # type: ignore[attr-defined]


def _global(machine: Machine) -> Any:
    module, name = (str(machine.line(_SHORT_LINE), "utf-8") for _ in range(2))
    return machine.find(module, name)


def _frame(machine: Machine) -> None:
    """Skips the length of a frame, which only helps to read ahead."""
    machine.number("<Q")


def _start(machine: Machine) -> None:
    if (protocol := machine.number("<B")) > pickle.HIGHEST_PROTOCOL:
        raise Malformed(f"a pickle of protocol {protocol}")


# The instructions that put a value on the stack. Counts are read without a sign, so that negative
# ones are larger than any file.
_VALUES: dict[bytes, Callable[[Machine], Any]] = {
    pickle.NONE: lambda machine: None,
    pickle.NEWTRUE: lambda machine: True,
    pickle.NEWFALSE: lambda machine: False,
    pickle.INT: _decimal_number,
    pickle.LONG: _decimal_number,
    pickle.BININT: lambda machine: machine.number("<i"),
    pickle.BININT1: lambda machine: machine.number("<B"),
    pickle.BININT2: lambda machine: machine.number("<H"),
    pickle.LONG1: lambda machine: _short_number(machine, "<B"),
    pickle.LONG4: lambda machine: _short_number(machine, "<I"),
    pickle.FLOAT: lambda machine: float(machine.line(_SHORT_LINE)),
    pickle.BINFLOAT: lambda machine: machine.number(">d"),
    pickle.STRING: _quoted,
    pickle.BINSTRING: lambda machine: machine.text(machine.data("<I"), machine.encoding),
    pickle.SHORT_BINSTRING: lambda machine: machine.text(machine.data("<B"), machine.encoding),
    pickle.UNICODE: lambda machine: machine.escaped_text(machine.line()),
    pickle.SHORT_BINUNICODE: lambda machine: machine.text(machine.data("<B"), "utf-8"),
    pickle.BINUNICODE: lambda machine: machine.text(machine.data("<I"), "utf-8"),
    pickle.BINUNICODE8: lambda machine: machine.text(machine.data("<Q"), "utf-8"),
    pickle.SHORT_BINBYTES: lambda machine: machine.data("<B"),
    pickle.BINBYTES: lambda machine: machine.data("<I"),
    pickle.BINBYTES8: lambda machine: machine.data("<Q"),
    pickle.BYTEARRAY8: lambda machine: bytearray(machine.data("<Q")),
    pickle.EMPTY_TUPLE: lambda machine: (),
    pickle.TUPLE1: lambda machine: machine.row(1),
    pickle.TUPLE2: lambda machine: machine.row(2),
    pickle.TUPLE3: lambda machine: machine.row(3),
    pickle.TUPLE: lambda machine: tuple(machine.since_mark()),
    pickle.EMPTY_LIST: lambda machine: [],
    pickle.LIST: lambda machine: machine.since_mark(),
    pickle.EMPTY_DICT: lambda machine: {},
    pickle.DICT: lambda machine: dictionary(machine.since_mark()),
    pickle.GET: lambda machine: machine.memo[int(machine.line(_SHORT_LINE))],
    pickle.BINGET: lambda machine: machine.memo[machine.number("<B")],
    pickle.LONG_BINGET: lambda machine: machine.memo[machine.number("<I")],
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: Machine.name,
    pickle.REDUCE: Machine.call,
    pickle.BINPERSID: lambda machine: machine.refer(machine.stack.pop()),
}
# The instructions that do something else.
_ACTIONS: dict[bytes, Callable[[Machine], None]] = {
    pickle.PROTO: _start,
    pickle.FRAME: _frame,
    pickle.MARK: lambda machine: machine.marks.append(len(machine.stack)),
    pickle.PUT: lambda machine: machine.remember(int(machine.line(_SHORT_LINE))),
    pickle.BINPUT: lambda machine: machine.remember(machine.number("<B")),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number("<I")),
    pickle.MEMOIZE: lambda machine: machine.remember(len(machine.memo)),
    pickle.APPEND: lambda machine: machine.extend([machine.stack.pop()]),
    pickle.APPENDS: lambda machine: machine.extend(machine.since_mark()),
    pickle.SETITEM: lambda machine: machine.update(list(machine.row(2))),
    pickle.SETITEMS: lambda machine: machine.update(machine.since_mark()),
    pickle.BUILD: Machine.set_state,
}
