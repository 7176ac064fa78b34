"""The time of detection by its phases: compilation, preparation, the device, post-processing."""

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
    """The times for one batch size.

    Attributes:
        batch_size: the number of pictures in a batch.
        compilation: the seconds until the first batch of each input size was done.
        milliseconds: the times of each phase and of the total for the whole batch, with one number
            for each repetition.
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
    """Times detection on one device, from pictures in memory to boxes and masks at their size.

    Each phase is waited for, so nothing overlaps, and a pipelined run is faster than the total. The
    inputs of a batch have one size; if the pictures need several sizes, batches of these alternate.

    Args:
        config: the configuration of the detector.
        variables: its parameters and statistics.
        pictures: uint8 `[H, W, 3]`, RGB, of any sizes, which are used in turn.
        batch_size: the number of pictures in a batch.
        selection: which detections to post-process.
        repetitions: the number of batches that are measured.
        warm_up: the number of batches before these, after those that compile.
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
    """Formats the times of each phase, and the pictures per second by the median of the total.

    The columns are the median and the 10th and 90th percentiles in milliseconds.
    """
    lines = [f"{'batch':>5}  {'phase':<22}" + "".join(f"{name:>10}" for name in ("median ms", "10 %", "90 %"))]
    for timing in timings:
        for phase, values in timing.milliseconds.items():
            lines.append(
                f"{timing.batch_size:>5}  {phase:<22}" + "".join(f"{value:>10.2f}" for value in np.percentile(values, _PERCENTILES))
            )
        rate = 1000 * timing.batch_size / float(np.median(timing.milliseconds["total"]))
        lines.append(
            f"{timing.batch_size:>5}  {rate:.1f} pictures/s; the first batch took {timing.compilation:.1f} s, including compilation"
        )
    return "\n".join(lines)
