"""Checks and times the kernels of RoIAlign and NMS on this GPU.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --only train_boxes fast
    python benchmarks/kernels.py --plain

The first command needs an NVIDIA GPU of compute capability 9.0, and uses torchvision if it is
installed. The second command uses only shapes whose names start with the given words. The third one
runs on any machine, with plain JAX at tiny shapes.

For each real shape (see `model_shapes/`) the kernel is first compared with plain JAX on all inputs:
NMS bit for bit, and RoIAlign and its gradient by the largest difference over the largest value. Two
runs of the kernel must give the same bits. Then its elapsed time is measured. One program processes
several sets of inputs, so that a cache cannot hold them, and is called many times before any result
is waited for (see `timing.py`). The figures are the median of several rounds and the range between
the 10th and the 90th percentile, for one set of inputs. The output also has:

- the bandwidth for the smallest number of bytes that have to move (every pixel under a sample and
  every result once), and its fraction of the bandwidth of a copy;
- the time of plain JAX, and its ratio to that of the kernel;
- the time of torchvision, and its ratio to that of the kernel: `roi_align` once for each level,
  with the RoIs assigned beforehand and as a CUDA graph; `MultiScaleRoIAlign`; `nms` and
  `batched_nms`, which wait for the GPU between their steps;
- the goal for the ratio to the fastest of these, if there is one.

The last lines are a table in Markdown. The exit code is 1 if a kernel fails or its results are
wrong, and 2 if there is no GPU.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from model_shapes.nms import NMS_SHAPES, ClassNmsShape, ExactNmsShape, FastNmsShape, NmsShape
from model_shapes.roi_align import ROI_ALIGN_SHAPES, RoiAlignInputs, RoiAlignShape
from timing import Times, copy_bandwidth, describe_device, in_turn, measure

from jaxseg.ops.implementation import ImplementationError, missing_gpu
from jaxseg.ops.nms import class_nms, cross_class_fast_nms, exact_nms, fast_nms, labelled_nms
from jaxseg.ops.roi_align import roi_align

# The goals for the speed of the kernels, as multiples of the fastest way with torchvision.
ROI_ALIGN_GOAL, FAST_NMS_GOAL, EXACT_NMS_GOAL = 1.5, 5.0, 1.0
# The largest allowed difference from plain JAX over the largest value, which covers sums in another
# order or one rounding of the result.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2.0**-7}
# The bytes of all sets of inputs and results, which far exceed the 60 MB of an H200's cache.
BYTES_OF_SETS, MOST_SETS = 2**28, 8
# The number of cases whose inputs are in memory at the same time.
CASES_AT_A_TIME = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation on sets of inputs of one shape.

    Attributes:
        operation: a function of the name of an implementation and of the operands.
        sets: the sets of operands, on the device.
        tolerance: see `TOLERANCES`; 0 requires equal bits.
        fewest_bytes: the bytes that one operation has to move; None stands for those of the
            operands and results.
        peers: a function that makes the calls of torchvision from the module that contains them.
        goal: the goal for the ratio to the fastest of these calls.
    """

    operation: Callable[..., Any]
    sets: list[Any]
    tolerance: float
    fewest_bytes: float | None
    peers: Callable[[Any], dict[str, Any]]
    goal: float | None

    def lower(self, implementation: str) -> Any:
        operation = jax.jit(functools.partial(self.operation, implementation))
        return jax.jit(functools.partial(in_turn, operation)).lower(self.sets)


def nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def make_sets(shape: RoiAlignShape | NmsShape, *dtype: Any) -> list[Any]:
    first = jax.tree.map(jnp.asarray, shape.inputs(0, *dtype))
    count = min(MOST_SETS, max(2, -(-BYTES_OF_SETS // nbytes(first))))
    return [first, *(jax.tree.map(jnp.asarray, shape.inputs(seed, *dtype)) for seed in range(1, count))]


# ---- RoIAlign ----


def roi_align_case(shape: RoiAlignShape, dtype: str, gradient: bool) -> Case:
    def pool(implementation: str, features: Any, boxes: jax.Array, levels: jax.Array, *_: Any) -> jax.Array:
        return roi_align(features, boxes, levels, **shape.arguments, implementation=implementation)

    def pool_and_spread(implementation: str, features: Any, boxes: jax.Array, levels: jax.Array, wanted: jax.Array) -> Any:
        pooled, pull_back = jax.vjp(lambda features: pool(implementation, features, boxes, levels), features)
        return pooled, pull_back(wanted)[0]

    sets = make_sets(shape, dtype)
    pixel = shape.channels * jnp.dtype(dtype).itemsize
    fewest = touched_pixels(shape, sets[0]) * pixel + sets[0].gradient.nbytes + nbytes(sets[0][1:3])
    if gradient:
        fewest += sets[0].gradient.nbytes + nbytes(sets[0].features)
    return Case(
        operation=pool_and_spread if gradient else pool,
        sets=[tuple(inputs) for inputs in sets],
        tolerance=TOLERANCES[dtype],
        fewest_bytes=fewest,
        peers=lambda module: module.roi_align_peers(shape, sets, dtype, gradient=gradient),
        goal=ROI_ALIGN_GOAL if shape.training else None,
    )


def touched_pixels(shape: RoiAlignShape, inputs: RoiAlignInputs) -> int:
    """Counts the pixels of all images and levels that samples within their level read."""
    boxes, levels = np.asarray(inputs.boxes), np.asarray(inputs.levels)
    count = 0
    for level, (size, stride) in enumerate(zip(shape.level_sizes, shape.strides, strict=True)):
        touched = np.zeros((shape.batch, *size), bool)
        for image, roi in zip(*np.nonzero(levels == level), strict=True):
            x, y = (boxes[image, roi, axis::2] / stride - 0.5 * shape.aligned for axis in (0, 1))
            touched[image][np.ix_(sampled(shape, y, size[0]), sampled(shape, x, size[1]))] = True
        count += int(touched.sum())
    return count


def sampled(shape: RoiAlignShape, ends: np.ndarray, length: int) -> np.ndarray:
    """Returns the pixels along one axis that samples between two ends read."""
    low, high = ends
    extent = high - low if shape.aligned else max(high - low, 1.0)
    samples = shape.output_size * (shape.sampling_ratio or max(int(np.ceil(extent / shape.output_size)), 0))
    position = low + (np.arange(samples) + 0.5) * extent / max(samples, 1)
    first = np.floor(position.clip(0, length - 1)).astype(int)
    return np.unique(np.minimum([first, first + 1], length - 1))


# ---- Non-maximum suppression ----


def nms_case(shape: NmsShape) -> Case:
    if isinstance(shape, FastNmsShape):
        function: Callable[..., Any] = cross_class_fast_nms if shape.cross_class else fast_nms
        goal = FAST_NMS_GOAL if shape.priors <= shape.top_k else None
    elif isinstance(shape, ExactNmsShape):
        function, goal = exact_nms, EXACT_NMS_GOAL
    else:
        function, goal = labelled_nms if shape.labelled else class_nms, EXACT_NMS_GOAL

    def operation(implementation: str, *operands: jax.Array) -> Any:
        suppress = jax.vmap(functools.partial(function, **shape.arguments, implementation=implementation))
        # An image has several lists.
        return (jax.vmap(suppress) if isinstance(shape, ExactNmsShape) else suppress)(*operands)

    sets = make_sets(shape)
    operands = [tuple(array for array in inputs if array is not None) for inputs in sets]
    return Case(
        operation=operation,
        sets=operands,
        tolerance=0.0,
        fewest_bytes=None,
        peers=lambda module: module.nms_peers(shape, sets),
        goal=goal,
    )


def suppressions(shape: NmsShape) -> str:
    """Describes the suppression of a shape in words."""
    if isinstance(shape, ExactNmsShape):
        return f"{shape.batch} x {len(shape.counts)} lists of up to {max(shape.counts)}"
    if isinstance(shape, ClassNmsShape):
        return f"{shape.batch} x {shape.boxes} {'pairs' if shape.labelled else f'boxes of {shape.classes} classes'}"
    return f"{shape.batch} x {'all' if shape.cross_class else shape.classes} classes of {min(shape.top_k, shape.priors)}"


# ---- Running ----


def check(case: Case, ours: Any, plain: Any, again: Any) -> tuple[str, bool]:
    """Describes the results of a kernel, and returns whether they are right."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True))
    repeats = all(bool(same_bits(a, b)) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(again), strict=True))
    twice = "the same bits twice" if repeats else "other bits the second time"
    if not case.tolerance:
        right = all(bool(same_bits(a, b)) for a, b in pairs)
        return f"{'the same bits as plain JAX' if right else 'WRONG: other bits than plain JAX'}, {twice}", right and repeats
    error = max(float(difference(a, b)) for a, b in pairs)
    # No sum depends on the order of the threads, so different bits would mean a race.
    right = error <= case.tolerance and repeats
    return f"{'' if right else 'WRONG: '}{error:.1e} of the largest value from plain JAX, {twice}", right


@jax.jit
def same_bits(a: jax.Array, b: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jnp.floating):
        a, b = (jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") for x in (a, b))
    return (a == b).all()


@jax.jit
def difference(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Bench:
    """The settings that all cases share.

    Attributes:
        implementations: the names of the implementations, of which the first one is tested.
        torchvision: the module with torchvision's calls, or None.
        bandwidth: the bytes per second of a copy.
    """

    implementations: tuple[str, ...]
    torchvision: Any
    bandwidth: float

    def prepare(self, make: Callable[[], Case], pool: concurrent.futures.Executor) -> concurrent.futures.Future:
        """Makes a case and its programs, one for each implementation, which the pool compiles."""
        try:
            case = make()
            lowered = {name: case.lower(name) for name in self.implementations}
        # The error is reported when the case is run.
        except Exception as error:
            failed: concurrent.futures.Future = concurrent.futures.Future()
            failed.set_exception(error)
            return failed
        return pool.submit(lambda: (case, {name: program.compile() for name, program in lowered.items()}))

    def run(self, title: str, case: Case, programs: dict[str, Any]) -> tuple[str, bool]:
        """Times a case, prints the figures and returns its row of the table.

        The second result is whether the kernel is right.
        """
        first = self.implementations[0]
        results, right = programs[first](case.sets), True
        if len(programs) > 1:
            said, right = check(case, results, programs["xla"](case.sets), programs[first](case.sets))
            print(f"  {said}")
        times = {name: measure(functools.partial(programs[name], case.sets), len(case.sets)) for name in self.implementations}
        fewest = case.fewest_bytes or nbytes((case.sets[0], results[0]))
        speed = fewest / (1e-3 * times[first].median)
        part = speed / self.bandwidth
        show(first, times[first], f"{fewest / 1e6:.1f} MB at least, {speed / 1e9:.0f} GB/s, {100 * part:.0f} % of a copy")
        ratios = {name: times[name].median / times[first].median for name in self.implementations[1:]}
        for name, ratio in ratios.items():
            show(name, times[name], f"{ratio:.2f} times as long")
        theirs = self.run_torchvision(case, results, times[first])
        met = ""
        if case.goal and theirs and len(programs) > 1:
            met = f"{case.goal:g}: {'met' if min(theirs.values()) >= case.goal else 'not met'}"
            print(f"  goal for the fastest of torchvision's: {met}")
        cells = [
            title,
            str(times[first]),
            f"{100 * part:.0f} %",
            ", ".join(f"{ratio:.2f}" for ratio in ratios.values()),
            ", ".join(f"{name} {ratio:.2f}" for name, ratio in theirs.items()),
            met,
        ]
        return f"| {' | '.join(cells)} |", right

    def run_torchvision(self, case: Case, results: Any, ours: Times) -> dict[str, float]:
        """Returns the ratio of the time of each way with torchvision to ours."""
        ratios = {}
        for name, peer in (case.peers(self.torchvision) if self.torchvision else {}).items():
            times = measure(peer.run, len(case.sets), wait=self.torchvision.wait)
            ratios[name] = times.median / ours.median
            agreement = peer.compare(results) if peer.compare else ""
            show(f"torchvision {name}", times, ", ".join(filter(None, (f"{ratios[name]:.2f} times as long", peer.note, agreement))))
        return ratios


def show(name: str, times: Times, remark: str) -> None:
    print(f"  {name:<30} {times!s:<34} {remark}", flush=True)


def load_torchvision() -> Any:
    try:
        return importlib.import_module("torchvision_peers")
    # The import raises RuntimeError if the operators do not load.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        print(f"Without torchvision's times: {str(error).splitlines()[0]}.")
        return None


def make_cases(names: tuple[str, ...], dtypes: list[str], plain: bool) -> list[tuple[str, Callable[[], Case]]]:
    """Returns the titles of the cases and the functions that make them; goals come first."""
    groups: list[list[tuple[str, Callable[[], Case]]]] = [[], []]
    for shape in (*ROI_ALIGN_SHAPES, *NMS_SHAPES):
        if not shape.name.startswith(names):
            continue
        if isinstance(shape, RoiAlignShape):
            for dtype in dtypes:
                for gradient in (False, True)[: 1 + shape.training]:
                    title = f"{shape.name}, {dtype}, {'forward + gradient' if gradient else 'forward'}"
                    groups[not shape.training].append(
                        (title, functools.partial(roi_align_case, shape.tiny() if plain else shape, dtype, gradient))
                    )
        else:
            cut = shape.tiny() if plain else shape
            whole_step = isinstance(cut, FastNmsShape) and cut.priors > cut.top_k
            groups[whole_step].append((f"{shape.name}, {suppressions(cut)}", functools.partial(nms_case, cut)))
    return groups[0] + groups[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="the shapes whose names start so")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(TOLERANCES), help="the types of RoIAlign's features"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="no case starts after this time")
    parser.add_argument("--plain", action="store_true", help="only plain JAX at tiny shapes, on any backend")
    options = parser.parse_args()
    shapes = [shape.name for shape in (*ROI_ALIGN_SHAPES, *NMS_SHAPES)]
    for name in options.only:
        if not any(shape.startswith(name) for shape in shapes):
            parser.error(f"no shape's name starts with {name}; there are {', '.join(shapes)}")
    # torch also needs memory of the GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    missing = missing_gpu()
    if missing and not options.plain:
        print(f"The kernels need an NVIDIA GPU of compute capability 9.0 or later, but {missing}; --plain times plain JAX instead.")
        sys.exit(2)
    started = time.perf_counter()
    bench = Bench(("xla",) if options.plain else ("mosaic_gpu", "xla"), load_torchvision(), copy_bandwidth())
    print(f"{describe_device()}; a copy moves {bench.bandwidth / 1e9:.0f} GB/s, read and written")
    rows, wrong = [], []
    with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        waiting = make_cases(tuple(options.only), options.dtypes, options.plain)
        while waiting and time.perf_counter() - started < options.seconds:
            # The programs of a few cases are compiled in parallel before the first one is timed.
            prepared = [(title, bench.prepare(make, pool)) for title, make in waiting[:CASES_AT_A_TIME]]
            waiting = waiting[CASES_AT_A_TIME:]
            concurrent.futures.wait([future for _, future in prepared])
            while prepared:
                title, future = prepared.pop(0)
                print(f"\n{title}", flush=True)
                try:
                    row, right = bench.run(title, *future.result())
                    rows.append(row)
                except ImplementationError as error:
                    print(f"  {error}", flush=True)
                    right = True
                # If one kernel fails, the others are still measured.
                except Exception as error:
                    print(f"  FAILED: {type(error).__name__}: {str(error)[:2000]}", flush=True)
                    right = False
                wrong += [] if right else [title]
    print("\n| shape | this | of a copy | plain JAX | torchvision | goal |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    if waiting:
        print(f"Left out after {options.seconds:.0f} s: {'; '.join(title for title, _ in waiting)}.")
    if wrong:
        sys.exit("Failed or wrong: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
