"""The memory that a batch takes, asked before anything is made of it."""

import math

from jaxseg.config import ConfigError
from jaxseg.memory import require_memory
from jaxseg.structures import InputSpec


def check_batch_memory(spec: InputSpec, batch_size: int, max_objects: int, key: str, *, bytes_per_color: int = 1) -> None:
    """Raises ConfigError where a batch does not fit into half of the machine's memory.

    Args:
        spec: what the detector wants.
        batch_size: images of this process.
        max_objects: rows of ground truth an image.
        key: of the configuration, that says how many images.
        bytes_per_color: 1 in training, 4 in evaluation.
    """
    image = max(_image_bytes(spec, input_size, max_objects, bytes_per_color) for input_size in spec.input_sizes)
    require_memory(batch_size * image, f"A batch of {batch_size} images ({key})", "use fewer or smaller ones", error=ConfigError, share=0.5)


def _image_bytes(spec: InputSpec, input_size: tuple[int, int], max_objects: int, bytes_per_color: int) -> int:
    masks = max_objects * math.prod(spec.mask_size_in(input_size) or (0,)) // 8
    semantic = spec.num_classes * math.prod(spec.semantic_size_in(input_size) or (0,)) // 8
    return math.prod(input_size) * 3 * bytes_per_color + masks + semantic
