"""Times the forms of `jaxseg.ops.roi_align` on this machine, and the same sums in torch.

    python benchmarks/roi_align.py
    python benchmarks/roi_align.py --implementations default matmul --repetitions 3

The shapes are those of Mask R-CNN at 800 x 1088: boxes and masks, in detection and in training,
where the forward pass and the gradient are timed together. Proposals are random. The logarithms of
their sizes are distributed uniformly, approximately as for a trained network, and each proposal is
pooled from the level of its size. Each shape is timed with 2 x 2 unaligned samples per cell
(maskrcnn-benchmark, torchvision) and with adaptive aligned ones (detectron2, mmdetection).

If torch is installed, it runs `grid_sample` once for all samples of an image and level, and then
adds those of each cell. Its features have the memory layout of its convolutions' results.
torchvision's compiled operator is not used.

All sides take turns and have to agree. The results are the processor time of all threads and the
elapsed time: medians, the range between the 10th and the 90th percentile, and the ratio of torch's
time to ours. No other program should run: torch's threads spin while they wait for each other, and
on a busy machine that counts as processor time.
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops.roi_align import FORMS, pyramid_levels, roi_align

STRIDES = (4, 8, 16, 32)
# The sides of the smallest and the largest proposals, and the largest ratio of their sides.
SIDES, LARGEST_RATIO = (16, 500), 3


class Case(NamedTuple):
    """One call of RoIAlign in a model."""

    name: str
    batch: int
    rois: int
    output_size: int
    gradient: bool


CASES = (
    Case("detection, boxes", 1, 1000, 7, False),
    Case("detection, masks", 1, 100, 14, False),
    Case("training, boxes", 2, 512, 7, True),
    Case("training, masks", 2, 128, 14, True),
)
SAMPLING = {"2 x 2, unaligned": (2, False), "adaptive, aligned": (0, True)}


class Inputs(NamedTuple):
    """Features of the levels, boxes in pixels, their levels, and a gradient of the result."""

    features: list[np.ndarray]
    boxes: np.ndarray
    levels: np.ndarray
    gradient: np.ndarray


# A function that returns the pooled RoIs and, if the case has one, the gradient of the features, as
# soon as they are computed.
Side = Callable[[], tuple[Any, list[Any]]]


def make_inputs(case: Case, image_size: tuple[int, int], channels: int, rng: np.random.Generator) -> Inputs:
    height, width = image_size
    shape = (case.batch, case.rois)
    side = np.exp(rng.uniform(*np.log(SIDES), shape))
    ratio = np.exp(rng.uniform(-1, 1, shape) * np.log(LARGEST_RATIO) / 2)
    half = np.stack([side * ratio, side / ratio], -1) / 2
    center = rng.random((*shape, 2)) * (width, height)
    boxes = np.concatenate([center - half, center + half], -1).clip(0, (width, height) * 2).astype(np.float32)
    features = [
        rng.standard_normal((case.batch, math.ceil(height / stride), math.ceil(width / stride), channels), np.float32) for stride in STRIDES
    ]
    gradient = rng.standard_normal((*shape, case.output_size, case.output_size, channels), np.float32)
    return Inputs(features, boxes, np.asarray(pyramid_levels(boxes)) - 2, gradient)


def ours(inputs: Inputs, case: Case, sampling_ratio: int, aligned: bool, implementation: str) -> Side:
    def pool(features: list[jax.Array], boxes: jax.Array, levels: jax.Array) -> jax.Array:
        return roi_align(
            features,
            boxes,
            levels,
            strides=STRIDES,
            output_size=case.output_size,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            implementation=None if implementation == "default" else implementation,
        )

    @jax.jit
    def run(inputs: Inputs) -> tuple[jax.Array, list[jax.Array]]:
        if not case.gradient:
            return pool(*inputs[:3]), []
        pooled, pull_back = jax.vjp(lambda features: pool(features, *inputs[1:3]), inputs.features)
        return pooled, pull_back(inputs.gradient)[0]

    on_device = jax.tree.map(jnp.asarray, inputs)
    return lambda: jax.block_until_ready(run(on_device))


def in_torch(inputs: Inputs, case: Case, sampling_ratio: int, aligned: bool) -> Side:
    import torch
    import torch.nn.functional as F

    features = [torch.from_numpy(level).permute(0, 3, 1, 2).contiguous().requires_grad_(case.gradient) for level in inputs.features]
    boxes, levels = torch.from_numpy(inputs.boxes), torch.from_numpy(inputs.levels)
    gradient = torch.from_numpy(inputs.gradient).permute(0, 1, 4, 2, 3).contiguous()
    size = case.output_size

    def pool_level(level: Any, low: Any, extent: Any, counts: Any) -> Any:
        """Pools the RoIs of one image and level; there is a row for each sample of each of them."""
        height, width = level.shape[1:]
        columns, rows = (size * counts).T
        roi = torch.repeat_interleave(torch.arange(len(low)), rows * columns)
        first = torch.cumsum(rows * columns, 0) - rows * columns
        sample = torch.arange(len(roi)) - first[roi]
        row, column = sample // columns[roi], sample % columns[roi]
        y = low[roi, 1] + extent[roi, 1] * (row + 0.5) / rows[roi]
        x = low[roi, 0] + extent[roi, 0] * (column + 0.5) / columns[roi]
        # Positions go from -1 at the centre of the first pixel to 1 at the centre of the last one.
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)[None, None]
        samples = F.grid_sample(level[None], grid, padding_mode="border", align_corners=True)[0, :, 0]
        near = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
        if sampling_ratio:
            grids = (samples * near).reshape(level.shape[0], len(low), size * sampling_ratio, size * sampling_ratio)
            return F.avg_pool2d(grids, sampling_ratio).transpose(0, 1)
        weights = near / counts.prod(1)[roi]
        cell = (roi * size + row // counts[roi, 1]) * size + column // counts[roi, 0]
        pooled = torch.zeros(len(low) * size * size, level.shape[0]).index_add(0, cell, (samples * weights).T)
        return pooled.reshape(-1, size, size, level.shape[0]).permute(0, 3, 1, 2)

    def pool() -> Any:
        result = torch.zeros(gradient.shape)
        for index, stride in enumerate(STRIDES):
            low = boxes[..., :2] / stride - (0.5 if aligned else 0.0)
            extent = (boxes[..., 2:] - boxes[..., :2]) / stride
            extent = extent if aligned else extent.clamp(min=1)
            counts = (
                torch.full_like(levels[..., None].expand(extent.shape), sampling_ratio)
                if sampling_ratio
                else torch.ceil(extent / size).long()
            )
            for image in range(case.batch):
                here = levels[image] == index
                if here.any():
                    result[image, here] = pool_level(features[index][image], low[image, here], extent[image, here], counts[image, here])
        return result

    def run() -> tuple[Any, list[Any]]:
        if not case.gradient:
            with torch.no_grad():
                return pool(), []
        pooled = pool()
        return pooled, list(torch.autograd.grad(pooled, features, gradient, materialize_grads=True))

    return run


def agree(results: Mapping[str, tuple[Any, list[Any]]]) -> None:
    """Raises an error if the results of the sides differ by more than about 1e-4."""

    def arrays(name: str) -> list[np.ndarray]:
        pooled, gradients = results[name]
        values = [pooled, *gradients]
        return [value.detach().numpy().swapaxes(-3, -1).swapaxes(-3, -2) for value in values] if name == "torch" else values

    first = arrays(next(iter(results)))
    for name in results:
        for ours, theirs in zip(first, arrays(name), strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=2e-4, err_msg=name)


def measure(sides: Mapping[str, Side], repetitions: int) -> dict[str, np.ndarray]:
    """Measures the processor time and the elapsed time of each repetition in milliseconds.

    The first repetition is only checked.
    """
    agree({name: side() for name, side in sides.items()})
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            start = time.process_time(), time.perf_counter()
            side()
            times[name].append((1000 * (time.process_time() - start[0]), 1000 * (time.perf_counter() - start[1])))
    return {name: np.array(values) for name, values in times.items()}


def table(times: Mapping[str, np.ndarray]) -> str:
    lines = [f"{'':<10}{'processor':>14} {'(10 to 90 %)':<18}{'clock':>11} {'(10 to 90 %)':<18}torch / this"]
    for name, values in times.items():
        cells = []
        for low, median, high in np.percentile(values, (10, 50, 90), axis=0).T:
            cells.append(f"{median:>11.0f} ms ({low:.0f} to {high:.0f})".ljust(32))
        ratios = np.median(times["torch"], 0) / np.median(values, 0) if "torch" in times else ()
        lines.append(f"{name:<10}" + "".join(cells) + ", ".join(f"{ratio:.1f}" for ratio in ratios))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--implementations", nargs="+", default=["default", "gather", "window"], choices=["default", *FORMS])
    parser.add_argument("--image_size", type=int, nargs=2, default=(800, 1088), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=10)
    options = parser.parse_args()
    print(f"input of {options.image_size[0]} x {options.image_size[1]}, {options.channels} channels, {jax.devices()[0].device_kind}")
    for case in CASES:
        inputs = make_inputs(case, tuple(options.image_size), options.channels, np.random.default_rng(0))
        for sampling, (sampling_ratio, aligned) in SAMPLING.items():
            sides = {
                name: ours(inputs, case, sampling_ratio, aligned, name)
                for name in options.implementations
                if sampling_ratio or name != "gather"
            }
            if importlib.util.find_spec("torch") is not None:
                sides["torch"] = in_torch(inputs, case, sampling_ratio, aligned)
            direction = "forward and gradient" if case.gradient else "forward"
            print(f"\n{case.name}: {case.batch} x {case.rois} RoIs to {case.output_size} x {case.output_size}, {sampling}, {direction}")
            print(table(measure(sides, options.repetitions)), flush=True)


if __name__ == "__main__":
    main()
