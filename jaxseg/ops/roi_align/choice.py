"""Which form of plain JAX computes RoIAlign where nobody names one."""

from typing import Literal, NamedTuple, get_args

from jaxseg.devices import platform
from jaxseg.ops.roi_align.bilinear import Geometry

Form = Literal["gather", "matmul", "window"]
FORMS: tuple[Form, ...] = get_args(Form)

# The products cost as much as the gather where the side of a RoI's cells times the pixels of all
# levels is this many times the rows that the gather moves, by XLA's own estimate for TPUs (see
# docs/benchmarks.md).
PIXELS_PER_ROW = 200


class Forms(NamedTuple):
    """Plain forms.

    Attributes:
        alone: the form of the result, where only that is wanted.
        with_gradient: the form of both, where the gradient is wanted, too.
    """

    alone: Form
    with_gradient: Form


def default_forms(geometry: Geometry, rois: int) -> Forms:
    """The forms for so many RoIs of an image, by a rule for the platform that is compiled for.

    On CPUs it is the loop over RoIs. For fixed samples it is also the gather, which XLA fuses into
    one pass there, as long as there are enough cells to be worth its copy of all pixels into one
    table. The gather's gradient, a scatter, is slow there, and XLA computes the result again for
    each use in a backward pass. `benchmarks/roi_align.py` measures that.

    Elsewhere every turn of a loop has to wait for the one before. It is the gather for fixed
    samples, and for adaptive samples it is the products, whose cost does not depend on the number
    of samples. This has not been measured on GPUs.

    On TPUs it is the products for small maps, too. They cost the side of a RoI's cells times the
    pixels of all levels, and the gather with its scatter costs the rows that it moves,
    `(2 * samples * cells)^2`. This follows the compiler's estimates; nothing has run on a TPU.
    """
    pixels = sum(geometry.areas)
    if platform() == "cpu":
        many = 2 * rois * geometry.output_size**2 > pixels
        return Forms("gather" if geometry.sampling_ratio and many else "window", "window")
    rows = (2 * geometry.sampling_ratio * geometry.output_size) ** 2
    small = platform() == "tpu" and geometry.output_size * pixels <= PIXELS_PER_ROW * rows
    return Forms("gather", "gather") if geometry.sampling_ratio and not small else Forms("matmul", "matmul")
