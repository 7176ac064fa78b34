"""Reads a JSON object of any size through a window on its text, so that memory holds little more than one entry of a list."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxseg.data.sources.dataset import DataError
from jaxseg.errors import shortened

# Bytes that are read at once.
_PIECE = 2**19

# Characters of the values that are handed out together.
_BATCH = 2**15

# Characters of one value that is built in memory.
_LONGEST_VALUE = 3_000_000

# Lists and objects in a value that does not end in the window yet: each takes up to 50 times its text.
_MOST_BRACKETS = 2**17

# A value that ends this near to the window's end may go on behind it, as 1.5e3 does after 1.
_TAIL = 16

# As deep as Python itself reads.
_DEEPEST = 1000

# What a character does to the depth of brackets.
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1

# What the first character of a value that is passed over says of its type.
_KINDS = {"[": "list", "{": "dict", '"': "str"}

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JsonStream:
    """A JSON file from its beginning to its end; each method goes on where the last one ended."""

    def __init__(self, path: Path, file: BinaryIO):
        """Starts behind the byte order mark, if there is one.

        Args:
            path: the file's name, for messages.
            file: the file, opened at its beginning.
        """
        self.path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ended = False
        self._text, self._position = "", 0
        # Of what the window has left behind: bytes read, line breaks, and characters behind the last of these.
        self._bytes = self._lines = self._columns = 0
        # Characters of the values that a batch holds.
        self._built = 0
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self._bytes = len(codecs.BOM_UTF8)
        file.seek(self._bytes)

    def items(self) -> Iterator[str]:
        """The keys of the object that the file holds; the caller reads or skips the value of each before the next.

        Raises:
            DataError: the file holds something else, or something behind the object.
        """
        if self.peek() != "{":
            self._refuse_other_values()
        self._position += 1
        if self.peek() == "}":
            self._position += 1
        else:
            yield from self._keys()
        if self.peek():
            raise self._broken("Extra data")

    def _keys(self) -> Iterator[str]:
        while True:
            if self.peek() != '"':
                raise self._broken("Expecting property name enclosed in double quotes")
            key = self.value()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def batches(self) -> Iterator[list]:
        """The elements of the list that comes next, in lists that stand for little text."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        batch: list[Any] = []
        more = True
        while more:
            batch.append(self.value())
            more = self._take(",]") == ","
            if self._built > _BATCH or not more:
                yield batch
                batch, self._built = [], 0

    def value(self) -> Any:
        """The value that comes next.

        Raises:
            DataError: it is no JSON, or too large to be built in memory.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._ended or (error.pos < len(self._text) - _TAIL and not error.msg.startswith("Unterminated")):
                    raise self._broken(error.msg, error.pos) from None
            except RecursionError:
                raise self._too_deep() from None
            except ValueError:
                raise DataError(f"{self.path} cannot be used: line {self._line()} has a whole number of over 4,300 digits.") from None
            else:
                if end - self._position > _LONGEST_VALUE:
                    raise self._too_large()
                if self._ended or end <= len(self._text) - _TAIL:
                    self._position, self._built = end, self._built + end - self._position
                    return value
            self._widen()

    def skip(self) -> str:
        """Passes over the value that comes next without building it; the name of its type."""
        kind = _KINDS.get(self.peek())
        if kind is None:
            return type(self.value()).__name__
        depth, quoted = 0, False
        while True:
            depth, quoted, ended = self._pass_brackets(depth, quoted)
            if ended:
                return kind
            if not self._read():
                raise self._broken("Unterminated string" if quoted else "Expecting ',' delimiter")

    def _pass_brackets(self, depth: int, quoted: bool) -> tuple[int, bool, bool]:
        """Follows strings and brackets up to the window's end, or to that of the value.

        Returns:
            The depth there, whether it lies in a string, and whether it is the value's end.
        """
        text = self._text[self._position :]
        # A backslash and what it stands before stay together.
        text = text[: len(text) - (len(text) - len(text.rstrip("\\"))) % 2]
        characters = np.frombuffer(text.replace("\\\\", "__").replace('\\"', "__").encode("ascii", "replace"), np.uint8)
        outside = (np.cumsum(characters == ord('"'), dtype=np.int32) + quoted) % 2 == 0
        steps = _STEPS[characters] * outside
        depths = depth + np.cumsum(steps, dtype=np.int32)
        if depths.max(initial=0) > _DEEPEST:
            raise self._too_deep()
        ends = np.flatnonzero((depths == 0) & ((steps < 0) | ((characters == ord('"')) & outside)))
        if len(ends):
            self._position += int(ends[0]) + 1
            return 0, False, True
        self._position += len(text)
        return (int(depths[-1]), not outside[-1], False) if len(text) else (depth, quoted, False)

    def peek(self) -> str:
        """The next character that is no space; nothing at the end of the file."""
        while True:
            found = self._text[self._position : self._position + 1]
            if found and found not in " \t\n\r":
                return found
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position == len(self._text) and not self._read():
                return ""

    def _take(self, allowed: str) -> str:
        """The next character, which must be one of `allowed`."""
        found = self.peek()
        if not found or found not in allowed:
            raise self._broken(f"Expecting {allowed[0]!r} delimiter")
        self._position += 1
        return found

    def _read(self) -> bool:
        """Moves the window on: forgets what is behind the position, and adds a piece; False at the end of the file."""
        if self._ended:
            return False
        breaks = self._text.count("\n", 0, self._position)
        line_start = self._text.rfind("\n", 0, self._position) + 1
        self._lines, self._columns = self._lines + breaks, self._position - line_start + (0 if breaks else self._columns)
        try:
            piece = self._file.read(_PIECE)
            before = self._bytes - len(self._decoder.getstate()[0])
            self._text = self._text[self._position :] + self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not valid JSON: byte {before + error.start} is not UTF-8.") from None
        self._position, self._bytes, self._ended = 0, self._bytes + len(piece), not piece
        return True

    def _widen(self) -> None:
        """Adds a piece for a value that goes on behind the window's end."""
        brackets = sum(self._text.count(bracket, self._position) for bracket in "[{")
        if len(self._text) - self._position > _LONGEST_VALUE or brackets > _MOST_BRACKETS:
            raise self._too_large()
        self._read()

    def _refuse_other_values(self) -> None:
        """Tells what the file holds instead of an object."""
        if not self.peek():
            raise DataError(f"{self.path} is empty; it must be a COCO instance file.")
        kind = "list" if self.peek() == "[" else type(self.value()).__name__
        if kind == "list":
            self.skip()
        raise DataError(f"{self.path} is not a COCO instance file: it holds a {kind}, not an object with images, annotations, categories.")

    def _line(self, position: int | None = None) -> int:
        return self._lines + self._text.count("\n", 0, self._position if position is None else position) + 1

    def _broken(self, reason: str, position: int | None = None) -> DataError:
        position = self._position if position is None else position
        line_start = self._text.rfind("\n", 0, position) + 1
        column = position - line_start + (0 if line_start else self._columns) + 1
        return DataError(f"{self.path} is not valid JSON: line {self._line(position)}, column {column}: {reason}.")

    def _too_deep(self) -> DataError:
        return DataError(f"{self.path} is not a COCO instance file: its lists or objects are nested too deeply.")

    def _too_large(self) -> DataError:
        return DataError(
            f"{self.path} cannot be used: the entry {shortened(self._text[self._position : self._position + 60])} on line {self._line()} "
            f"has over {_LONGEST_VALUE:,} characters or {_MOST_BRACKETS:,} lists and objects; no entry may have so many."
        )
