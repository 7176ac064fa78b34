"""How long detection takes, told apart: compiling, preparing pictures, the device, and the way back to image size."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxseg.config import Config
from jaxseg.evaluation.detect import DeviceDetector, Selection, pad_batch, prepare, select, to_picture

_PERCENTILES = (50, 10, 90)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one size of batch.

    Attributes:
        batch_size: pictures detected together.
        compilation: seconds until the first batch of each size of input was done.
        milliseconds: of each phase and of the total, one number a repetition, for the whole batch.
    """

    batch_size: int
    compilation: float
    milliseconds: dict[str, np.ndarray]


def time_detection(
    config: Config,
    variables: Any,
    pictures: Sequence[np.ndarray],
    *,
    batch_size: int,
    selection: Selection,
    repetitions: int = 20,
    warm_up: int = 3,
) -> Timing:
    """Times detection from pictures in memory to boxes and masks at their size, one batch after the other on one device.

    Nothing overlaps: each phase is waited for, so a pipelined run is faster than the total. A batch
    has inputs of one size; where the pictures need several, these take turns.

    Args:
        config: of the detector.
        variables: its parameters and statistics.
        pictures: uint8 `[H, W, 3]`, RGB, of any sizes; used in turn.
        batch_size: pictures at a time.
        selection: which detections go back to image size.
        repetitions: batches that count.
        warm_up: batches before that which do not count, after those that compile.
    """
    detector = DeviceDetector(config, variables, jax.local_devices()[:1])
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for picture in pictures:
        groups.setdefault(detector.rule.input_size((picture.shape[0], picture.shape[1])), []).append(picture)
    turns = itertools.cycle([itertools.cycle(group) for group in groups.values()])
    milliseconds: dict[str, list[float]] = {}
    compilation = 0.0
    for repetition in range(-len(groups) - warm_up, repetitions):
        batch = list(itertools.islice(next(turns), batch_size))
        marks = [time.perf_counter()]
        prepared = [prepare(i, picture, detector.rule) for i, picture in enumerate(batch)]
        inputs = pad_batch(prepared, batch_size)
        marks.append(time.perf_counter())
        detections = jax.block_until_ready(detector(*inputs))
        marks.append(time.perf_counter())
        on_host = jax.device_get(detections)
        for row in prepared:
            to_picture(select(on_host, row.index, selection), row.view, detector.spec)
        marks.append(time.perf_counter())
        if repetition < -warm_up:
            compilation += marks[2] - marks[1]
        if repetition >= 0:
            spans = [*np.diff(marks), marks[-1] - marks[0]]
            for phase, seconds in zip(("preparation", "network and detection", "post-processing", "total"), spans, strict=True):
                milliseconds.setdefault(phase, []).append(1000 * float(seconds))
    return Timing(batch_size, compilation, {phase: np.array(values) for phase, values in milliseconds.items()})


def timing_table(timings: Sequence[Timing]) -> str:
    """Median, 10th and 90th percentile of each phase in milliseconds, and pictures a second by the median total."""
    lines = [f"{'batch':>5}  {'phase':<22}" + "".join(f"{name:>10}" for name in ("median ms", "10 %", "90 %"))]
    for timing in timings:
        for phase, values in timing.milliseconds.items():
            lines.append(
                f"{timing.batch_size:>5}  {phase:<22}" + "".join(f"{value:>10.2f}" for value in np.percentile(values, _PERCENTILES))
            )
        rate = 1000 * timing.batch_size / float(np.median(timing.milliseconds["total"]))
        lines.append(f"{timing.batch_size:>5}  {rate:.1f} pictures/s; the first batch took {timing.compilation:.1f} s, compiling included")
    return "\n".join(lines)
