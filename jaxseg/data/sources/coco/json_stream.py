"""Reading a JSON object of any size through a window on its text.

Memory holds little more than one entry of a list.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxseg.data.sources.dataset import DataError
from jaxseg.errors import shortened

# The number of bytes that are read at once.
_PIECE = 2**19

# The number of characters of the values that are returned together.
_BATCH = 2**15

# The largest number of characters of a value that is built in memory.
_LONGEST_VALUE = 3_000_000

# The largest number of lists and objects in a value that does not end within the window. Each takes
# up to 50 times as much memory as its text.
_MOST_BRACKETS = 2**17

# A value that ends this close to the window's end may go on after it, as 1.5e3 does after 1.
_TAIL = 16

# The depth to which Python itself reads.
_DEEPEST = 1000

# The change of the depth of brackets at each character.
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1

# The type of a skipped value, by its first character.
_KINDS = {"[": "list", "{": "dict", '"': "str"}

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JsonStream:
    """A JSON file that is read once from start to end; each method goes on after the last one."""

    def __init__(self, path: Path, file: BinaryIO):
        """Starts after the byte order mark, if there is one.

        Args:
            path: the file's name, for messages.
            file: the file, opened at its beginning.
        """
        self.path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ended = False
        self._text, self._position = "", 0
        # The bytes read so far, the line breaks before the window, and the characters since the
        # last of these.
        self._bytes = self._lines = self._columns = 0
        # The number of characters of the values in a batch.
        self._built = 0
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self._bytes = len(codecs.BOM_UTF8)
        file.seek(self._bytes)

    def items(self) -> Iterator[str]:
        """Yields the keys of the object that the file holds.

        The caller must read or skip the value of each key before the next.

        Raises:
            DataError: the file holds something else, or something after the object.
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
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return

    def batches(self) -> Iterator[list]:
        """Yields the elements of the next list, in batches of a bounded amount of text."""
        self._expect("[")
        if self.peek() == "]":
            self._expect("]")
            return
        batch: list[Any] = []
        more = True
        while more:
            batch.append(self.value())
            more = self._expect(",]") == ","
            if self._built > _BATCH or not more:
                yield batch
                batch, self._built = [], 0

    def value(self) -> Any:
        """Reads the next value.

        Raises:
            DataError: it is not valid JSON, or too large to be built in memory.
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
            self._extend_window()

    def skip(self) -> str:
        """Skips the next value without building it, and returns the name of its type."""
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
        """Follows strings and brackets to the end of the window or of the value.

        Returns:
            The depth there, whether it is in a string, and whether it is the end of the value.
        """
        text = self._text[self._position :]
        # A backslash must stay together with the character after it.
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
        """Returns the next character that is not a space, or "" at the end of the file."""
        while True:
            found = self._text[self._position : self._position + 1]
            if found and found not in " \t\n\r":
                return found
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position == len(self._text) and not self._read():
                return ""

    def _expect(self, allowed: str) -> str:
        """Reads the next character, which must be one of `allowed`."""
        found = self.peek()
        if not found or found not in allowed:
            raise self._broken(f"Expecting {allowed[0]!r} delimiter")
        self._position += 1
        return found

    def _read(self) -> bool:
        """Moves the window on: drops the text before the position, and adds a piece.

        Returns:
            Whether there was more to read.
        """
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

    def _extend_window(self) -> None:
        """Adds a piece to the window for a value that does not end in it."""
        brackets = sum(self._text.count(bracket, self._position) for bracket in "[{")
        if len(self._text) - self._position > _LONGEST_VALUE or brackets > _MOST_BRACKETS:
            raise self._too_large()
        self._read()

    def _refuse_other_values(self) -> None:
        """Raises an error that says what the file holds instead of an object."""
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
