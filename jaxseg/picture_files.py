"""Detection in picture files, with a drawing of each picture and one JSON file of all objects."""

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
    """Returns the files that a file name, a folder or a glob matches, in the order of their names.

    In a folder, the pictures are the files with known file name extensions. Pictures in its
    subfolders are left out, and their number is reported in the log.

    Raises:
        ImageError: there are no such files.
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
    """Yields the path and the RGB pixels of each picture that can be read.

    The error of every other file is reported in the log, and `skip` is called with its path.
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
    """Detects objects in picture files, and writes a PNG drawing of each and detections.json.

    detections.json contains `images`, each with `file_name`, `height`, `width` and `detections`
    (`box` as x1, y1, x2, y2, `class`, `name`, `score`, `rle` and `polygons`), and `skipped`, the
    names of the files that are not readable pictures. It is written picture by picture, so that the
    detections before an interruption are not lost.

    Args:
        predictor: the predictor, which must return masks as crops (`masks="crop"`).
        paths: the picture files, in any format that OpenCV reads.
        output: the folder for the results, which is created if necessary.

    Returns:
        The paths of the drawings.

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
            scores = found.scores if found.mask_scores is None else found.mask_scores
            drawing = draw(image, found.boxes, found.classes, predictor.class_names, masks=found.masks, scores=scores)
            write_picture(drawings[path], drawing)
            written.append(drawings[path])
            detections.add(path, found)
            logger.info("%s: %d objects -> %s", path, len(found), drawings[path])
    if not written:
        raise ImageError(f"None of the {len(paths)} files is a picture that OpenCV can read, beginning with {paths[0]}.")
    return written


class _DetectionsFile:
    """The growing file detections.json, which is valid JSON after each picture."""

    def __init__(self, path: Path) -> None:
        self._path, self._skipped, self._empty = path, list[str](), True

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._file.write(b'{"images": [')
        self._end()
        return self

    def __exit__(self, *_: object) -> None:
        # An error in writing has already been raised where it happened.
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
        """Adds the name of a file that is not a picture."""
        self._skipped.append(str(path))
        self._end()

    def _end(self) -> None:
        """Writes the end of the file, and goes back to the position after the last entry."""
        place = self._file.tell()
        self._file.write(f'], "skipped": {json.dumps(self._skipped)}}}\n'.encode())
        self._file.flush()
        self._file.seek(place)


def _drawing_paths(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Returns the path of a PNG for each picture, which is named after the picture.

    If several pictures have the same name, the extension or the folders become part of it.
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
