"""What a batch takes, asked before anything is made of it."""

import math

from jaxseg.config import ConfigError
from jaxseg.memory import require_memory
from jaxseg.structures import InputSpec


def check_batch_memory(spec: InputSpec, batch_size: int, max_objects: int, key: str, *, bytes_per_color: int = 1) -> None:
    """Raises ConfigError where one batch of this process would not fit into half of the machine's memory.

    Args:
        spec: the sizes the detector wants.
        batch_size: images of this process.
        max_objects: rows of ground truth an image.
        key: of the configuration, that says how many images.
        bytes_per_color: 1 in training, 4 in evaluation.
    """
    masks = max_objects * math.prod(spec.mask_size or (0,)) // 8
    semantic = spec.num_classes * math.prod(spec.semantic_size or (0,)) // 8
    image = max(map(math.prod, spec.image_sizes)) * 3 * bytes_per_color + masks + semantic
    require_memory(batch_size * image, f"A batch of {batch_size} images ({key})", "use fewer or smaller ones", ConfigError, 0.5)
