r"""Times detection on this machine, from pictures in memory to boxes and masks at their size.

    python benchmarks/detect.py --config configs/yolact_r101.py
    python benchmarks/detect.py --config configs/yolact_r101.py \
        --golden golden/yolact/yolact_base_s0 --peer ../yolact   # needs torch

With `--peer`, a clone of dbolya/yolact is timed, too. On a GPU that runs the kernels, jaxseg is
timed with them and without. All sides take turns on the same pictures with the same weights, in
batches of 1 and 8. The results are medians and the range between the 10th and the 90th percentile,
in milliseconds per batch. The end of each phase is waited for:

- preparation: from the picture to the network's input;
- network: the raw outputs;
- detection: from the raw outputs to the detections that Fast NMS keeps. jaxseg also assembles and
  crops the soft masks here, which the original does in the next phase, so compare the sum;
- post-processing: boxes and binary masks at the size of the picture, in NumPy;
- total: all phases as a user runs them (`Predictor` in jaxseg; transform, network and `postprocess`
  in the original), measured separately.

Realistic times of detection need many candidates, which new weights do not find. `--golden` takes a
folder of the original's numbers, whose rebuild.py makes suitable weights and pictures. Without it,
weights are new and pictures are noise. `--config.model.detection.score_threshold=0` then makes
every prior a candidate.
"""

import argparse
import functools
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

import jaxseg
from jaxseg.config import Config, override, parse_config_flags
from jaxseg.data.views.from_spec import view_rule
from jaxseg.evaluation.detect import Selection, pad_batch, prepare, select, to_picture
from jaxseg.models.yolact.detections import image_detections
from jaxseg.ops.implementation import missing_gpu, named
from jaxseg.predictor import Predictor

# The original does a part of the first phase of jaxseg in the second phase.
TOGETHER = ("detection", "post-processing")
PICTURE_SIZE = (480, 640)
PEER_CONFIGS = {
    "yolact_r101": "yolact_base_config",
    "yolact_r50": "yolact_resnet50_config",
    "yolact_darknet53": "yolact_darknet53_config",
    "yolact_im400_r101": "yolact_im400_config",
    "yolact_im700_r101": "yolact_im700_config",
    "yolact_r50_pascal": "yolact_resnet50_pascal_config",
}

# A function from pictures to the milliseconds of each phase and the number of detections.
Side = Callable[[list[np.ndarray]], tuple[dict[str, float], int]]


def ours(config: Config, variables: Any) -> Side:
    """Makes the side of jaxseg.

    The network and the detection are separate programs for the phases, and one for the total.
    """
    model = jaxseg.build_model(config)
    spec = model.input_spec
    rule = view_rule(spec)
    network = program(model.apply, variables)
    detection = jax.jit(jax.vmap(lambda outputs: image_detections(outputs, model.anchors(), config.model)))
    predictor = Predictor(config, variables, batch_size=8)

    def run(pictures: list[np.ndarray]) -> tuple[dict[str, float], int]:
        watch = Stopwatch()
        prepared = [prepare(i, picture, rule) for i, picture in enumerate(pictures)]
        images, _ = pad_batch(prepared, len(pictures))
        watch.split("preparation")
        outputs = jax.block_until_ready(network(images))
        watch.split("network")
        detections = jax.block_until_ready(detection(outputs))
        watch.split("detection")
        on_host = jax.device_get(detections)
        for picture in prepared:
            to_picture(select(on_host, picture.index, Selection()), picture.view, spec)
        watch.split("post-processing")
        watch.restart()
        predictions = predictor(pictures)
        watch.split("total")
        return watch.milliseconds, sum(len(prediction) for prediction in predictions)

    return run


def program(function: Callable[..., Any], variables: Any) -> Callable[..., Any]:
    """Compiles a function of variables and data.

    On a CPU the variables are compiled into the program, as in `Predictor`.
    """
    if jax.default_backend() == "cpu":
        return jax.jit(functools.partial(function, variables))
    return functools.partial(jax.jit(function), variables)


def our_sides(config: Config, make: Callable[[Config], Side]) -> dict[str, Side]:
    """Makes the sides of jaxseg: on a GPU that runs the kernels, once with them and once without.

    There is only one side if the configuration or the environment selects the implementation.
    """
    if missing_gpu() or named(config.model.implementation):
        return {"jaxseg": make(config)}
    names = {"kernels": "mosaic_gpu", "plain JAX": "xla"}
    return {side: make(override(config, {"model.implementation": name})) for side, name in names.items()}


def original(checkout: Path, config_name: str, state: Mapping[str, np.ndarray] | None) -> tuple[Side, dict[str, np.ndarray]]:
    """Makes the side of dbolya/yolact, on the CPU with torch, and returns its weights by name."""
    import torch
    from torch import nn

    make_importable(checkout)
    from data import cfg, set_cfg  # type: ignore[import-not-found]
    from layers.output_utils import postprocess  # type: ignore[import-not-found]
    from utils.augmentations import FastBaseTransform  # type: ignore[import-not-found]
    from yolact import Yolact  # type: ignore[import-not-found]

    set_cfg(config_name)
    cfg.mask_proto_debug = False
    model = Yolact()
    if state is None:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
    else:
        model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    model.eval()
    detect = model.detect
    detect.use_fast_nms = True
    transform = FastBaseTransform()

    def prepare(pictures: list[np.ndarray]) -> Any:
        return torch.cat([transform(torch.from_numpy(picture[:, :, ::-1].copy()).float()[None]) for picture in pictures])

    def finish(detections: Any, pictures: list[np.ndarray]) -> int:
        count = 0
        for row, picture in enumerate(pictures):
            results = postprocess(detections, picture.shape[1], picture.shape[0], batch_idx=row)
            arrays = [result.numpy() for result in results]
            count += len(arrays[0])
        return count

    @torch.no_grad()
    def run(pictures: list[np.ndarray]) -> tuple[dict[str, float], int]:
        watch = Stopwatch()
        images = prepare(pictures)
        watch.split("preparation")
        # The network's last step is the detection; for the phases it returns its raw outputs.
        model.detect = lambda outputs, net: outputs
        outputs = model(images)
        watch.split("network")
        detections = detect(outputs, model)
        watch.split("detection")
        count = finish(detections, pictures)
        watch.split("post-processing")
        model.detect = detect
        watch.restart()
        finish(model(prepare(pictures)), pictures)
        watch.split("total")
        return watch.milliseconds, count

    return run, {name: value.numpy() for name, value in model.state_dict().items()}


def make_importable(checkout: Path) -> None:
    """Makes the original importable without a GPU and with recent versions of torch and NumPy.

    Its files are not changed.
    """
    import torch

    torch.cuda.current_device = lambda: 0
    # With several GPUs it does not use the script compiler, which now rejects its modules.
    torch.cuda.device_count = lambda: 2
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign, assignment]
    vars(np).update(int=int, float=float)
    if importlib.util.find_spec("torchvision") is None:
        # The original imports these modules, but the code that runs here does not use them.
        for name in ("torchvision", "torchvision.transforms", "torchvision.models", "torchvision.models.resnet"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
        sys.modules["torchvision.models.resnet"].Bottleneck = object  # type: ignore[attr-defined]
    sys.path.insert(0, str(checkout))


class Stopwatch:
    """A stopwatch that records the milliseconds between its splits, by name."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._last = time.perf_counter()

    def split(self, name: str) -> None:
        now = time.perf_counter()
        self.milliseconds[name] = 1000 * (now - self._last)
        self._last = time.perf_counter()


def golden_weights(folder: Path) -> dict[str, np.ndarray]:
    """Rebuilds the weights of a golden run, by the original's names."""
    specification = importlib.util.spec_from_file_location("rebuild", folder.parent.parent / "rebuild.py")
    if specification is None or specification.loader is None:
        raise SystemExit(f"There is no rebuild.py two folders above {folder}.")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.yolact_state_dict(folder)


def make_pictures(folder: Path | None) -> list[np.ndarray]:
    """Makes RGB pictures of 640 x 480, which are those of a golden run or noise."""
    if folder is None:
        return [np.random.default_rng(seed).integers(0, 256, (*PICTURE_SIZE, 3), dtype=np.uint8) for seed in range(2)]
    images = np.load(folder / "feats.npz")["image_bgr"]
    return [np.ascontiguousarray(cv2.resize(image, PICTURE_SIZE[::-1])[:, :, ::-1]) for image in images]


def measure(sides: Mapping[str, Side], pictures: list[np.ndarray], batch_size: int, repetitions: int) -> dict[str, dict[str, np.ndarray]]:
    """Measures the milliseconds by side and phase.

    The sides take turns, and the first turn of each is not counted.
    """
    batch = [pictures[i % len(pictures)] for i in range(batch_size)]
    times: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    for repetition in range(-1, repetitions):
        for name, side in sides.items():
            milliseconds, count = side(batch)
            if repetition < 0:
                print(f"{name}, batch {batch_size}: {count} detections")
                continue
            for phase, spent in milliseconds.items():
                times[name].setdefault(phase, []).append(spent)
    return {name: {phase: np.array(values) for phase, values in phases.items()} for name, phases in times.items()}


def table(times: Mapping[str, Mapping[str, np.ndarray]], together: Sequence[str]) -> str:
    """Formats a row for each phase, and one for the sum of the phases `together`.

    With several sides, it also has the ratios of the other sides' times to that of the first.
    """
    added = " + ".join(together)
    sides = {name: {**phases, added: np.sum([phases[phase] for phase in together], axis=0)} for name, phases in times.items()}
    phases = [phase for phase in next(iter(times.values())) if phase != "total"]
    width = max(len(added), 29)
    lines = [" " * width + "".join(f"{name:>12} {'(10 to 90 %)':<22}" for name in sides) + ("ratio" if len(sides) > 1 else "")]
    for phase in (*phases, added, "total"):
        values = [side[phase] for side in sides.values()]
        cells = []
        for value in values:
            low, median, high = np.percentile(value, (10, 50, 90))
            cells.append(f"{median:>9.1f} ms ({low:.1f} to {high:.1f})".ljust(35))
        ratio = ", ".join(f"{np.median(value) / np.median(values[0]):.2f}" for value in values[1:])
        lines.append(f"{phase:<{width}}" + "".join(cells) + ratio)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/yolact_r101.py")
    parser.add_argument("--golden", type=Path, help="folder of one run of the original")
    parser.add_argument("--peer", type=Path, help="checkout of dbolya/yolact")
    parser.add_argument(
        "--peer_config", help="the original's name for the config, or its Python expression (default: by our config's name)"
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=10)
    overrides, others = parse_config_flags(sys.argv[1:])
    options = parser.parse_args(others)
    config = jaxseg.load_config(options.config, overrides)
    state = None if options.golden is None else golden_weights(options.golden)
    sides: dict[str, Side] = {}
    if options.peer is not None:
        if not options.peer_config and config.name not in PEER_CONFIGS:
            parser.error(f"the original has no {config.name}; say --peer_config, or take one of {', '.join(PEER_CONFIGS)}")
        sides["original"], state = original(options.peer, options.peer_config or PEER_CONFIGS[config.name], state)
    if state is None:
        variables = jaxseg.init_variables(jaxseg.build_model(config), config)
    else:
        variables = jaxseg.load_weights(state, config)
    sides = {**our_sides(config, lambda config: ours(config, variables)), **sides}
    print(f"{config.name} at {config.model.image_size} px, pictures of 640 x 480, on {jax.devices()[0].device_kind}")
    for batch_size in options.batch_sizes:
        times = measure(sides, make_pictures(options.golden), batch_size, options.repetitions)
        print(f"\nbatch of {batch_size}, {options.repetitions} repetitions\n{table(times, TOGETHER)}\n")


if __name__ == "__main__":
    main()
