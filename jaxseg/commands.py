"""What the flags of eval.py ask for: the detector they name, its metrics, its drawings, its times."""

import dataclasses
import glob
import json
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from jaxseg.config import Config, ConfigError
from jaxseg.data.coco import open_dataset, resolve_classes
from jaxseg.evaluation.coco_metrics import class_table, threshold_table
from jaxseg.evaluation.detect import Selection, with_nms
from jaxseg.evaluation.evaluate import evaluate
from jaxseg.evaluation.timing import time_detection, timing_table
from jaxseg.predictor import ImageError, Predictor, as_json
from jaxseg.training.sharding import initialize_distributed
from jaxseg.visualization import draw
from jaxseg.weights.load import load_detector

logger = logging.getLogger(__name__)

_PICTURE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BENCHMARK_PICTURES = 8
# What is worth drawing.
DRAWN = Selection(score_threshold=0.15, top_k=15)


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
        predict_files(Predictor(*detector, **dataclasses.asdict(selection)), find_pictures(images)[: limit or None], output)
    else:
        tables = measure(*detector, output, limit=limit, selection=selection)
        if jax.process_index() == 0:
            print(tables)


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be made a folder ({error.strerror}); choose another.") from None


def measure(config: Config, variables: Any, output: Path, *, limit: int, selection: Selection) -> str:
    """Evaluates on the validation images of `config.data` and writes the results to `output`, see `evaluate`; gives the tables.

    Raises:
        ConfigError, DataError: the dataset or `output` cannot be used, or the dataset is another one than the detector's.
    """
    # Before the work, not after it.
    _make_folder(output)
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
        pictures = [picture for path in find_pictures(images)[:limit] if (picture := read_picture(path)) is not None]
        if not pictures:
            raise ImageError(f"None of the first {limit} files of {images} is a picture that OpenCV can read.")
    sizes = sorted({1, config.eval.batch_size})
    return timing_table([time_detection(config, variables, pictures, batch_size=size, selection=selection) for size in sizes])


def find_pictures(pattern: str) -> list[Path]:
    """The files that a file name, a folder (its pictures, by their endings) or a glob names, in order of name.

    Raises:
        ImageError: there is none.
    """
    path = Path(pattern)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURE_SUFFIXES)
        if not found:
            raise ImageError(f"The folder {path} holds no pictures; their names end in one of {', '.join(sorted(_PICTURE_SUFFIXES))}.")
        return found
    found = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise ImageError(f"There is no picture {pattern}; give a file, a folder or a glob such as 'pictures/*.jpg'.")
    return found


def read_picture(path: Path) -> np.ndarray | None:
    """A picture file as uint8 `[H, W, 3]`, RGB, turned as its EXIF says; None where OpenCV cannot read it."""
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def predict_files(predictor: Predictor, paths: Sequence[Path], output: Path) -> list[Path]:
    """Detects in picture files; writes a drawing of each as PNG, and detections.json with everything found.

    detections.json holds `images`, each with `file_name`, `height`, `width` and `detections` (`box` as x1, y1, x2, y2,
    `class`, `name`, `score`, `rle`, `polygons`), and `skipped`, the names of files that are no readable picture.

    Args:
        predictor: says what to keep.
        paths: picture files, in any format OpenCV reads.
        output: a folder, made if need be.

    Returns:
        the drawings.

    Raises:
        ImageError: a drawing would overwrite one of the pictures, or none of the files can be read.
    """
    drawings = _drawing_paths(paths, output)
    _make_folder(output)
    read: deque[tuple[Path, np.ndarray]] = deque()
    skipped: list[str] = []

    def pictures() -> Iterator[np.ndarray]:
        for path in paths:
            image = read_picture(path)
            if image is None:
                logger.warning("%s is no picture that OpenCV can read; it is skipped.", path)
                skipped.append(str(path))
            else:
                read.append((path, image))
                yield image

    entries, written = [], []
    for prediction in predictor.stream(pictures()):
        path, image = read.popleft()
        drawing = draw(image, prediction.boxes, prediction.masks, prediction.classes, prediction.scores, predictor.class_names)
        cv2.imwrite(str(drawings[path]), cv2.cvtColor(drawing, cv2.COLOR_RGB2BGR))
        written.append(drawings[path])
        entries.append({"file_name": str(path), "height": image.shape[0], "width": image.shape[1], "detections": as_json(prediction)})
        logger.info("%s: %d objects -> %s", path, len(prediction), drawings[path])
    if not written:
        raise ImageError(f"None of the {len(paths)} files is a picture that OpenCV can read, beginning with {paths[0]}.")
    (output / "detections.json").write_text(json.dumps({"images": entries, "skipped": skipped}) + "\n")
    return written


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
