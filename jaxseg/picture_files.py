"""Detection in picture files: each gets a drawing, and a JSON file holds all objects."""

import contextlib
import glob
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxseg.errors import ConfigError
from jaxseg.files import is_file_name, make_folder
from jaxseg.pictures import ImageError, read_picture, write_picture
from jaxseg.predictor import Prediction, Predictor, as_json
from jaxseg.visualization import draw

logger = logging.getLogger(__name__)

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def find_pictures(pattern: str) -> list[Path]:
    """The files that a file name, a folder or a glob names, in order of name.

    Of a folder these are the pictures, known by the endings of their names. Pictures in folders
    below it are left out, and a line of the log tells how many.

    Raises:
        ImageError: there is none.
    """
    path = Path(pattern)
    if not is_file_name(pattern):
        raise ImageError(f"--images {pattern!r} is no name that a file can have.")
    if path.is_dir():
        return _pictures_of_folder(path)
    found = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise ImageError(f"There is no picture {pattern}; give a file, a folder or a glob such as 'pictures/*.jpg'.")
    return found


def _pictures_of_folder(folder: Path) -> list[Path]:
    everything = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    found = [file for file in everything if file.parent == folder]
    below = f"{len(everything) - len(found)} pictures lie in folders below {folder}; --images '{folder}/**/*' takes them, too"
    if not found:
        endings = ", ".join(sorted(_SUFFIXES))
        raise ImageError(f"The folder {folder} holds no pictures; their names end in one of {endings}.{f' {below}.' if everything else ''}")
    if len(everything) > len(found):
        logger.warning("%s.", below)
    return found


def readable_pictures(paths: Iterable[Path], skip: Callable[[Path], None]) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields each picture that can be read, as RGB, with its path.

    For every other file the log says what is wrong, and `skip` is called with its path.
    """
    for path in paths:
        try:
            picture = read_picture(path)
        except ImageError as error:
            logger.warning("%s It is skipped.", error)
            skip(path)
        else:
            yield path, picture


def predict_files(predictor: Predictor, paths: Sequence[Path], output: Path) -> list[Path]:
    """Detects objects in picture files; writes a PNG drawing of each, and detections.json.

    detections.json holds `images`, each with `file_name`, `height`, `width` and `detections` (`box`
    as x1, y1, x2, y2, `class`, `name`, `score`, `rle`, `polygons`), and `skipped`, the names of
    files that are no readable picture. It is written picture by picture, so that what was found
    before an interruption is in it.

    Args:
        predictor: it says what to keep, and gives masks as crops (`masks="crop"`).
        paths: picture files, in any format OpenCV reads.
        output: a folder, which is made if need be.

    Returns:
        the paths of the drawings.

    Raises:
        ImageError: a drawing would overwrite one of the pictures, or none of the files can be read.
        OSError: a file cannot be written, for instance because the disk is full.
    """
    drawings = _drawing_paths(paths, output)
    make_folder(output, "--output", ConfigError)
    read: deque[tuple[Path, np.ndarray]] = deque()
    written = []
    with _DetectionsFile(output / "detections.json") as detections:

        def pictures() -> Iterator[np.ndarray]:
            for path, picture in readable_pictures(paths, detections.skip):
                read.append((path, picture))
                yield picture

        for found in predictor.stream(pictures()):
            path, image = read.popleft()
            drawing = draw(image, found.boxes, found.classes, predictor.class_names, masks=found.masks, scores=found.scores)
            write_picture(drawings[path], drawing)
            written.append(drawings[path])
            detections.add(path, found)
            logger.info("%s: %d objects -> %s", path, len(found), drawings[path])
    if not written:
        raise ImageError(f"None of the {len(paths)} files is a picture that OpenCV can read, beginning with {paths[0]}.")
    return written


class _DetectionsFile:
    """detections.json while it grows: it is valid JSON after each picture."""

    def __init__(self, path: Path) -> None:
        self._path, self._skipped, self._empty = path, list[str](), True

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._file.write(b'{"images": [')
        self._end()
        return self

    def __exit__(self, *_: object) -> None:
        # An error in writing has been raised already, where it happened.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, path: Path, found: Prediction) -> None:
        """Adds the entry of a picture."""
        height, width = found.picture_size
        entry: Mapping[str, Any] = {"file_name": str(path), "height": height, "width": width, "detections": as_json(found)}
        self._file.write((b"" if self._empty else b",\n") + json.dumps(entry).encode())
        self._empty = False
        self._end()

    def skip(self, path: Path) -> None:
        """Adds the name of a file that is no picture."""
        self._skipped.append(str(path))
        self._end()

    def _end(self) -> None:
        """Writes what comes after the entries, and goes back to the place before it."""
        place = self._file.tell()
        self._file.write(f'], "skipped": {json.dumps(self._skipped)}}}\n'.encode())
        self._file.flush()
        self._file.seek(place)


def _drawing_paths(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """A PNG for each picture, named after it.

    Where other pictures have the same name, the ending or the folders are in the name, too.
    """
    namings = (lambda path: path.stem, lambda path: path.name, lambda path: "_".join(path.resolve().parts[1:]))
    counts = [Counter(naming(path) for path in paths) for naming in namings]
    drawings = {}
    for path in paths:
        name = next(naming(path) for naming, count in zip(namings, counts, strict=True) if count[naming(path)] == 1)
        drawings[path] = output / f"{name}.png"
    taken = {path.resolve() for path in paths}
    for path, drawing in drawings.items():
        if drawing.resolve() in taken:
            raise ImageError(f"The drawing of {path} would overwrite a picture, {drawing}; choose another --output folder.")
    return drawings
