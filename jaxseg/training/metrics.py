"""The metrics of a run: averages of the last steps, console, metrics.jsonl, and TensorBoard."""

import collections
import contextlib
import datetime
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from jaxseg.files import write_text

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
# The names of the losses on the console, as in YOLACT's original, in their order.
_LETTERS = {"box": "B", "class": "C", "mask": "M", "mask_iou": "I", "semantic": "S", "total": "T"}


class MovingAverages:
    """The means of the last `window` finite values of each name."""

    def __init__(self, window: int = 100):
        self._values: dict[str, collections.deque[float]] = collections.defaultdict(lambda: collections.deque(maxlen=window))

    def add(self, values: Mapping[str, float]) -> None:
        """Adds the values of a step, except those that are not finite."""
        for name, value in values.items():
            if math.isfinite(value):
                self._values[name].append(value)

    def means(self) -> dict[str, float]:
        """Returns the means of all names that have a value."""
        return {name: sum(values) / len(values) for name, values in self._values.items() if values}


def losses_text(values: Mapping[str, float]) -> str:
    """Formats the values `loss/<name>` as `B: 1.234 | C: ...`, and leaves out other values."""
    names = [name.removeprefix("loss/") for name in values if name.startswith("loss/")]
    names.sort(key=lambda name: (list(_LETTERS).index(name) if name in _LETTERS else -1, name))
    return " | ".join(f"{_LETTERS.get(name, name)}: {values[f'loss/{name}']:.3f}" for name in names)


def progress_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Formats the console line of a step.

    It is `step/steps || B: .. | C: .. | M: .. | S: .. | T: .. || ETA: .. || step: .. s | data: .. s
    || rate: ..`.

    Args:
        step: the number of finished steps.
        steps: the number of steps of the whole run.
        values: `loss/<name>`, `learning_rate`, and `step_time` and `data_time` in seconds; values
            that are missing are not shown.
    """
    parts = [f"{step:7d}/{steps}", losses_text(values)]
    if "step_time" in values:
        parts.append(f"ETA: {datetime.timedelta(seconds=round((steps - step) * values['step_time']))}")
        parts.append(f"step: {values['step_time']:.3f} s | data: {values['data_time']:.3f} s")
    return " || ".join([*parts, f"rate: {values['learning_rate']:.3g}"])


class MetricsWriter:
    """Appends the values of steps to metrics.jsonl and TensorBoard.

    A resumed run first removes the values of steps after the one that it resumes from.
    """

    def __init__(self, run_folder: Path, finished_steps: int):
        path = run_folder / METRICS
        if path.is_file():
            write_text(path, "".join(line for line in path.read_text().splitlines(keepends=True) if _is_until(line, finished_steps)))
        self._file = path.open("a")
        self._board = SummaryWriter(str(run_folder), purge_step=finished_steps + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the line `{"step": ..., name: value, ...}`; a value that is not finite is null."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step} | finite) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None
        for name, number in finite.items():
            if number is not None:
                self._board.add_scalar(name, number, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture, uint8 RGB `[H, W, 3]`, to TensorBoard."""
        # OpenCV encodes it, like all other pictures.
        png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
        encoded = Summary.Image(height=image.shape[0], width=image.shape[1], colorspace=3, encoded_image_string=png)
        self._board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=encoded)]), step)

    def close(self) -> None:
        """Flushes and closes both; errors were already raised when the values were written."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()


def _is_until(line: str, step: int) -> bool:
    """Whether a line of metrics.jsonl is complete and its step is at most `step`."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False
