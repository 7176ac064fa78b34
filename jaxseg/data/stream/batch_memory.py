"""A check that a batch fits into memory, made before anything is allocated."""

import math

from jaxseg.config import ConfigError
from jaxseg.memory import require_memory
from jaxseg.structures import InputSpec


def check_batch_memory(spec: InputSpec, batch_size: int, max_objects: int, key: str, *, bytes_per_color: int = 1) -> None:
    """Raises ConfigError if a batch does not fit into half of the machine's memory.

    Args:
        spec: the input that the detector requires.
        batch_size: the number of images in a batch of this process.
        max_objects: the number of rows of ground truth per image.
        key: the key of the configuration that sets the batch size, for the error message.
        bytes_per_color: the bytes per colour value: 1 in training, 4 in evaluation.
    """
    image = max(_image_bytes(spec, input_size, max_objects, bytes_per_color) for input_size in spec.input_sizes)
    require_memory(batch_size * image, f"A batch of {batch_size} images ({key})", "use fewer or smaller ones", error=ConfigError, share=0.5)


def _image_bytes(spec: InputSpec, input_size: tuple[int, int], max_objects: int, bytes_per_color: int) -> int:
    masks = 0 if spec.mask_targets == "bitmaps" else max_objects * math.prod(spec.mask_size_in(input_size) or (0,)) // 8
    semantic = spec.num_classes * math.prod(spec.semantic_size_in(input_size) or (0,)) // 8
    # A point of a polygon has two float32 and the number of its polygon.
    pool = spec.mask_pool * {"cells": 0, "polygons": 9, "bitmaps": 1}[spec.mask_targets]
    return math.prod(input_size) * 3 * bytes_per_color + masks + semantic + pool
