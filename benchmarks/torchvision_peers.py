"""torchvision's compiled RoIAlign and NMS on the inputs of `model_shapes/`, as its users call them.

Features are NCHW, contiguous and on the GPU. This needs torch, and a torchvision whose operators
load. If a call can be captured, it is a CUDA graph, so that Python takes no time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from model_shapes.nms import ClassNmsInputs, ClassNmsShape, ExactNmsShape, FastNmsInputs, FastNmsShape, NmsShape
from model_shapes.roi_align import RoiAlignInputs, RoiAlignShape
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, batched_nms, nms, roi_align

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Peer(NamedTuple):
    """One way to do the work with torchvision.

    Attributes:
        run: a function that starts the work for all sets of inputs, one after the other.
        note: a description of the changes that were necessary to run it.
        compare: a function that describes whether its results agree with those of jaxseg.
    """

    run: Callable[[], Any]
    note: str
    compare: Callable[[Any], str] | None


def wait(_: Any) -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _tensor(array: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Converts an array to a tensor, including bfloat16, which NumPy itself does not support."""
    array = jnp.asarray(array)
    host = np.array(array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array)
    return torch.from_numpy(host).to(DEVICE, dtype)


def _peer(works: Sequence[Callable[[], Any]], note: str, *, capture: bool, compare: Callable[[Any], str] | None = None) -> Peer:
    def run() -> Any:
        return [work() for work in works]

    if not capture or DEVICE.type != "cuda":
        return Peer(run, note, compare)
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU during the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            kept = run()

        def replay() -> Any:
            graph.replay()
            # The graph writes to this memory at every call.
            return kept

        return Peer(replay, ", ".join(filter(None, (note, "CUDA graph"))), compare)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return Peer(run, f"{note}, no CUDA graph: {str(error).splitlines()[0]}", compare)


# ---- RoIAlign ----


def _dtype(name: str) -> torch.dtype:
    """Returns torch's dtype; float16 replaces bfloat16, for which torchvision has no kernel."""
    if name == "float32":
        return torch.float32
    try:
        image = torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16, device=DEVICE)
        return roi_align(image, torch.zeros(1, 5, dtype=torch.bfloat16, device=DEVICE), 2).dtype
    except RuntimeError:
        return torch.float16


class _TorchRois(NamedTuple):
    """One set of inputs of RoIAlign.

    Attributes:
        features: the levels, NCHW.
        boxes: the boxes of each image.
        of_levels: the RoIs of each level; the first number of each is the index of its image.
        gradients: the gradient of the result for the RoIs of each level.
        gradient: the gradient of the result for all RoIs.
    """

    features: list[Tensor]
    boxes: list[Tensor]
    of_levels: list[Tensor]
    gradients: list[Tensor]
    gradient: Tensor


def _torch_rois(shape: RoiAlignShape, inputs: RoiAlignInputs, dtype: torch.dtype, gradient: bool) -> _TorchRois:
    features = [_tensor(level, dtype).permute(0, 3, 1, 2).contiguous().requires_grad_(gradient) for level in inputs.features]
    boxes, levels = _tensor(inputs.boxes, dtype), _tensor(inputs.levels)
    images = torch.arange(shape.batch, device=DEVICE)[:, None].expand(levels.shape)
    rois = torch.cat([images[..., None].to(dtype), boxes], -1)
    wanted = _tensor(inputs.gradient, dtype).permute(0, 1, 4, 2, 3).contiguous() if gradient else features[0]
    rows = [levels == level for level in range(len(features))]
    return _TorchRois(
        features,
        list(boxes),
        [rois[row].contiguous() for row in rows],
        [wanted[row].contiguous() for row in rows] if gradient else [],
        wanted.flatten(0, 1),
    )


def roi_align_peers(shape: RoiAlignShape, sets: Sequence[RoiAlignInputs], dtype_name: str, *, gradient: bool) -> dict[str, Peer]:
    """Returns the ways to compute RoIAlign.

    They are one `roi_align` for each level, with the RoIs assigned to levels beforehand, and
    `MultiScaleRoIAlign` if it supports the conventions.
    """
    dtype = _dtype(dtype_name)
    note = "" if str(dtype).endswith(dtype_name) else str(dtype).removeprefix("torch.")
    on_device = [_torch_rois(shape, inputs, dtype, gradient) for inputs in sets]
    # For torchvision a ratio below 1 means adaptive sampling.
    ratio = shape.sampling_ratio or -1

    def by_level(inputs: _TorchRois) -> Any:
        results = [
            roi_align(level, rois, shape.output_size, 1 / stride, ratio, shape.aligned)
            for level, rois, stride in zip(inputs.features, inputs.of_levels, shape.strides, strict=True)
        ]
        return results, torch.autograd.grad(results, inputs.features, inputs.gradients) if gradient else ()

    def compare(ours: Any) -> str:
        """Describes how much the first set differs from ours, which is the same sum in float32."""
        pooled, spread = by_level(on_device[0])
        results = [
            np.asarray(ours[0][0] if gradient else ours[0], np.float32),
            *([np.asarray(x, np.float32) for x in ours[0][1]] if gradient else ()),
        ]
        levels = np.asarray(sets[0].levels)
        theirs = np.zeros_like(results[0])
        for level, values in enumerate(pooled):
            theirs[levels == level] = values.detach().float().permute(0, 2, 3, 1).cpu().numpy()
        differences = [np.abs(theirs - results[0]).max() / np.abs(theirs).max()]
        for values, mine in zip(spread, results[1:], strict=True):
            expected = values.float().permute(0, 2, 3, 1).cpu().numpy()
            differences.append(np.abs(expected - mine).max() / np.abs(expected).max())
        return f"differs from ours by at most {max(differences):.1e} of the largest value"

    def bind(function: Callable[[_TorchRois], Any]) -> list[Callable[[], Any]]:
        return [lambda inputs=inputs: function(inputs) for inputs in on_device]

    peers = {"roi_align": _peer(bind(by_level), note, capture=True, compare=compare if dtype == torch.float32 else None)}
    if len(shape.strides) > 1 and not shape.aligned:
        names = [str(i) for i in range(len(shape.strides))]
        pooler = MultiScaleRoIAlign(names, shape.output_size, ratio)

        def multi_scale(inputs: _TorchRois) -> Any:
            result = pooler(dict(zip(names, inputs.features, strict=True)), inputs.boxes, [shape.input_size] * shape.batch)
            # The operator assigns levels itself, and a level may be left without RoIs.
            spread = torch.autograd.grad(result, inputs.features, inputs.gradient, allow_unused=True) if gradient else ()
            return result, spread

        peers["MultiScaleRoIAlign"] = _peer(bind(multi_scale), note, capture=False)
    return peers


# ---- Non-maximum suppression ----


def nms_peers(shape: NmsShape, sets: Sequence[Any]) -> dict[str, Peer]:
    """Returns the code of a user of torchvision: a loop over images, and for `nms` over lists."""
    if isinstance(shape, ExactNmsShape):
        return _exact_peers(shape, sets)
    works = _fast_works(shape, sets) if isinstance(shape, FastNmsShape) else _class_works(shape, sets)
    name = "nms" if isinstance(shape, FastNmsShape) and shape.cross_class else "batched_nms"
    return {name: _peer(works, "", capture=False)}


def _exact_peers(shape: ExactNmsShape, sets: Sequence[Any]) -> dict[str, Peer]:
    threshold = shape.iou_threshold
    lists: list[list[tuple[Tensor, Tensor]]] = []
    images: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for inputs in sets:
        boxes, scores = _tensor(inputs.boxes), _tensor(inputs.scores)
        lists.append([(boxes[i, k, :n], scores[i, k, :n]) for i in range(shape.batch) for k, n in enumerate(shape.counts)])
        levels = torch.repeat_interleave(torch.arange(len(shape.counts)), torch.tensor(shape.counts)).to(DEVICE)
        first = len(shape.counts)
        images.append(
            [
                (*(torch.cat(parts) for parts in zip(*lists[-1][i * first : (i + 1) * first], strict=True)), levels)
                for i in range(shape.batch)
            ]
        )

    def compare(ours: Any) -> str:
        mine = np.asarray(ours[0]).reshape(-1, max(shape.counts))
        differ = 0
        for row, (boxes, scores) in zip(mine, lists[0], strict=True):
            kept = np.zeros(len(boxes), bool)
            kept[nms(boxes, scores, threshold).cpu().numpy()] = True
            differ += int((kept != row[: len(boxes)]).sum())
        return f"keeps {'the same boxes' if not differ else f'others in {differ} of {sum(shape.counts) * shape.batch} places'}"

    by_list = [lambda pairs=pairs: [nms(*pair, threshold) for pair in pairs] for pairs in lists]
    by_image = [lambda parts=parts: [batched_nms(*image, threshold) for image in parts] for parts in images]
    return {
        "nms": _peer(by_list, "", capture=False, compare=None if shape.pixel_offset else compare),
        "batched_nms": _peer(by_image, "", capture=False),
    }


def _fast_works(shape: FastNmsShape, sets: Sequence[FastNmsInputs]) -> list[Callable[[], Any]]:
    """Selects the best boxes of each class, suppresses exactly, and selects the best of all.

    The first step is left out if ours does not have it.
    """

    def image(boxes: Tensor, scores: Tensor, candidates: Tensor) -> Any:
        masked = torch.where(candidates, scores, -1.0)
        if shape.cross_class:
            best, rows = masked.max(0).values.topk(min(shape.top_k, shape.priors))
            return rows[nms(boxes[rows], best, shape.iou_threshold)]
        best, rows = masked.topk(min(shape.top_k, shape.priors), 1)
        classes = torch.arange(shape.classes, device=DEVICE).repeat_interleave(best.shape[1])
        kept = batched_nms(boxes[rows].flatten(0, 1), best.flatten(), classes, shape.iou_threshold)
        return kept[: shape.max_detections]

    if shape.priors <= shape.top_k:
        # All classes have the same boxes, which are used unchanged.
        def ready(inputs: FastNmsInputs) -> Callable[[], Any]:
            boxes = _tensor(np.broadcast_to(inputs.boxes[0], (shape.classes, shape.priors, 4)).reshape(-1, 4))
            scores = _tensor(inputs.scores[0]).flatten()
            classes = torch.arange(shape.classes, device=DEVICE).repeat_interleave(shape.priors)
            return lambda: batched_nms(boxes, scores, classes, shape.iou_threshold)

        return [ready(inputs) for inputs in sets]
    on_device = [[_tensor(array) for array in inputs] for inputs in sets]
    return [lambda tensors=tensors: [image(*rows) for rows in zip(*tensors, strict=True)] for tensors in on_device]


def _class_works(shape: ClassNmsShape, sets: Sequence[ClassNmsInputs]) -> list[Callable[[], Any]]:
    """Applies the threshold, suppresses within each class, and selects the best of all."""

    def image(boxes: Tensor, scores: Tensor, labels: Tensor | None = None) -> Any:
        likely = torch.where(scores > shape.score_threshold)
        classes = likely[1] if labels is None else labels[likely]
        boxes, scores = boxes[likely], scores[likely]
        kept = batched_nms(boxes, scores, classes, shape.iou_threshold)[: shape.max_detections]
        return boxes[kept], scores[kept], classes[kept]

    on_device = [[_tensor(array) for array in inputs if array is not None] for inputs in sets]
    return [lambda tensors=tensors: [image(*rows) for rows in zip(*tensors, strict=True)] for tensors in on_device]
