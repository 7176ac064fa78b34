"""What the flags of eval.py ask for: the detector they name, its metrics, its drawings, its times."""

import contextlib
import dataclasses
import glob
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxseg.config import Config, ConfigError
from jaxseg.data.sources.from_config import open_dataset, resolve_classes
from jaxseg.devices import initialize_distributed
from jaxseg.evaluation.coco_metrics import class_table, threshold_table
from jaxseg.evaluation.detect import DRAWN, Selection, with_nms
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.evaluation.timing import time_detection, timing_table
from jaxseg.files import is_file_name, make_folder
from jaxseg.pictures import ImageError, read_picture, write_picture
from jaxseg.predictor import Predictor, as_json
from jaxseg.visualization import draw
from jaxseg.weights.load import load_detector

logger = logging.getLogger(__name__)

_PICTURE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BENCHMARK_PICTURES = 8


def run(
    *,
    checkpoint: str,
    config: str | None,
    overrides: Mapping[str, Any],
    step: str,
    output: Path,
    images: str | None,
    benchmark: bool,
    score_threshold: float | None,
    top_k: int | None,
    nms: str | None,
    limit: int,
) -> None:
    """Does what eval.py is told to, flag by flag, and prints tables on stdout.

    Raises:
        ConfigError, DataError, WeightsError, CheckpointError, ImageError: one sentence on what the user gave.
    """
    if limit < 0:
        raise ConfigError(f"--limit {limit} is out of range; it must be 0 (all) or more.")
    drawing = images is not None and not benchmark
    if not drawing and not benchmark:
        initialize_distributed()
    default = DRAWN if drawing else Selection()
    selection = Selection(
        default.score_threshold if score_threshold is None else score_threshold,
        default.top_k if top_k is None else top_k,
    )
    settings, variables = load_detector(checkpoint, config, overrides, step=step)
    detector = with_nms(settings, nms), variables
    if benchmark:
        print(time_pictures(*detector, images, limit=limit, selection=selection))
    elif images is not None:
        predictor = Predictor(*detector, **dataclasses.asdict(selection), masks="crop")
        predict_files(predictor, find_pictures(images)[: limit or None], output)
    else:
        tables = measure(*detector, output, limit=limit, selection=selection)
        if jax.process_index() == 0:
            print(tables)


def measure(config: Config, variables: Any, output: Path, *, limit: int, selection: Selection) -> str:
    """Evaluates on the validation images of `config.data` and writes the results to `output`, see `evaluate`; gives the tables.

    Raises:
        ConfigError, DataError: the dataset or `output` cannot be used, or the dataset is another one than the detector's.
    """
    # Before the work, not after it.
    make_folder(output, "--output", ConfigError)
    config = resolve_classes(config)
    dataset = open_dataset(config, "val")
    logger.info("evaluating on %d images", min(limit, len(dataset)) if limit else len(dataset))
    metrics = evaluate(
        config,
        variables,
        dataset,
        batch_size=config.eval.batch_size,
        limit=limit,
        **dataclasses.asdict(selection),
        output=output,
    )
    return f"{class_table(metrics, dataset.class_names)}\n\n{threshold_table(metrics)}\n\nwritten to {output}"


def time_pictures(config: Config, variables: Any, images: str | None, *, limit: int, selection: Selection) -> str:
    """Times detection with batches of 1 and of `config.eval.batch_size`; gives a table.

    Args:
        config: of the detector.
        variables: its parameters and statistics.
        images: pictures to use, see `find_pictures`; None takes validation images.
        limit: how many different pictures; 0 takes 8.
        selection: which detections go back to image size.

    Raises:
        ImageError, DataError: there are no pictures, or they cannot be read.
    """
    limit = limit or _BENCHMARK_PICTURES
    if images is None:
        dataset = open_dataset(config, "val")
        pictures = [dataset[i].image for i in range(min(limit, len(dataset)))]
    else:
        pictures = [picture for _, picture in _readable(find_pictures(images)[:limit], lambda path: None)]
        if not pictures:
            raise ImageError(f"None of the first {limit} files of {images} is a picture that OpenCV can read.")
    sizes = sorted({1, config.eval.batch_size})
    return timing_table([time_detection(config, variables, pictures, batch_size=size, selection=selection) for size in sizes])


def find_pictures(pattern: str) -> list[Path]:
    """The files that a file name, a folder (its pictures, by their endings, without those of folders below it) or a glob names.

    Returns:
        them in order of name. What lies in folders below is told in the log.

    Raises:
        ImageError: there is none.
    """
    path = Path(pattern)
    if not is_file_name(pattern):
        raise ImageError(f"--images {pattern!r} is no name that a file can have.")
    if path.is_dir():
        everything = sorted(file for file in path.rglob("*") if file.suffix.lower() in _PICTURE_SUFFIXES)
        found = [file for file in everything if file.parent == path]
        below = f"{len(everything) - len(found)} pictures lie in folders below {path}; --images '{path}/**/*' takes them, too"
        if not found:
            endings = ", ".join(sorted(_PICTURE_SUFFIXES))
            raise ImageError(
                f"The folder {path} holds no pictures; their names end in one of {endings}.{f' {below}.' if everything else ''}"
            )
        if len(everything) > len(found):
            logger.warning("%s.", below)
        return found
    found = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise ImageError(f"There is no picture {pattern}; give a file, a folder or a glob such as 'pictures/*.jpg'.")
    return found


def _readable(paths: Iterable[Path], skip: Callable[[Path], None]) -> Iterator[tuple[Path, np.ndarray]]:
    """The pictures that can be read, RGB, with their paths; the others are told in the log and given to `skip`."""
    for path in paths:
        try:
            picture = read_picture(path)
        except ImageError as error:
            logger.warning("%s It is skipped.", error)
            skip(path)
        else:
            yield path, picture


def predict_files(predictor: Predictor, paths: Sequence[Path], output: Path) -> list[Path]:
    """Detects in picture files; writes a drawing of each as PNG, and detections.json with everything found.

    detections.json holds `images`, each with `file_name`, `height`, `width` and `detections` (`box` as x1, y1, x2, y2,
    `class`, `name`, `score`, `rle`, `polygons`), and `skipped`, the names of files that are no readable picture. It is written
    picture by picture: what is found before an interruption is in it.

    Args:
        predictor: says what to keep; with `masks="crop"`.
        paths: picture files, in any format OpenCV reads.
        output: a folder, made if need be.

    Returns:
        the drawings.

    Raises:
        ImageError: a drawing would overwrite one of the pictures, or none of the files can be read.
        OSError: a file cannot be written, for instance on a full disk.
    """
    drawings = _drawing_paths(paths, output)
    make_folder(output, "--output", ConfigError)
    read: deque[tuple[Path, np.ndarray]] = deque()
    written = []
    with _DetectionsFile(output / "detections.json") as detections:

        def pictures() -> Iterator[np.ndarray]:
            for path, picture in _readable(paths, detections.skip):
                read.append((path, picture))
                yield picture

        for found in predictor.stream(pictures()):
            path, image = read.popleft()
            write_picture(drawings[path], draw(image, found.boxes, found.masks, found.classes, found.scores, predictor.class_names))
            written.append(drawings[path])
            height, width = found.image_size
            detections.add({"file_name": str(path), "height": height, "width": width, "detections": as_json(found)})
            logger.info("%s: %d objects -> %s", path, len(found), drawings[path])
    if not written:
        raise ImageError(f"None of the {len(paths)} files is a picture that OpenCV can read, beginning with {paths[0]}.")
    return written


class _DetectionsFile:
    """detections.json while it grows: after each picture it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._skipped, self._empty = path, list[str](), True

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._file.write(b'{"images": [')
        self._end()
        return self

    def __exit__(self, *_: object) -> None:
        # What could not be written was told when it was.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, entry: Mapping[str, Any]) -> None:
        """The entry of a picture."""
        self._file.write((b"" if self._empty else b",\n") + json.dumps(entry).encode())
        self._empty = False
        self._end()

    def skip(self, path: Path) -> None:
        """A file that is no picture."""
        self._skipped.append(str(path))
        self._end()

    def _end(self) -> None:
        """Writes what comes after the entries, and goes back before it."""
        place = self._file.tell()
        self._file.write(f'], "skipped": {json.dumps(self._skipped)}}}\n'.encode())
        self._file.flush()
        self._file.seek(place)


def _drawing_paths(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """A PNG for each picture, named like it; with its ending, or its folders too, where other pictures have that name."""
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
