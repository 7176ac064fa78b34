"""Non-maximum suppression (NMS) in fixed shapes.

Every function takes one image and can be used under `jax.vmap`, which makes a kernel's batch larger
but does not add launches. The argument `implementation` selects the code that compares boxes, see
`jaxseg.ops.implementation`; all implementations return the same bits.

- `fast.py`: Fast NMS, for each class (`fast_nms`) or for all classes at once
  (`cross_class_fast_nms`).
- `exact.py`: exact greedy NMS of one list of boxes (`exact_nms`).
- `by_class.py`: exact greedy NMS within each class, and the best of all classes (`class_nms`,
  `labelled_nms`).
"""

from jaxseg.ops.nms.by_class import class_nms, labelled_nms
from jaxseg.ops.nms.exact import exact_nms
from jaxseg.ops.nms.fast import cross_class_fast_nms, fast_nms
from jaxseg.ops.nms.kept import Kept

__all__ = ["Kept", "class_nms", "cross_class_fast_nms", "exact_nms", "fast_nms", "labelled_nms"]
