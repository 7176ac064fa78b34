"""The default choice among the forms of RoIAlign in plain JAX."""

from typing import Literal, NamedTuple, get_args

from jaxseg.devices import platform
from jaxseg.ops.roi_align.bilinear import Geometry

Form = Literal["gather", "matmul", "window"]
FORMS: tuple[Form, ...] = get_args(Form)

# The products and the gather have equal costs if the side of a RoI's cells times the pixels of all
# levels is this multiple of the rows that the gather moves, by XLA's own estimate for TPUs (see
# docs/benchmarks.md).
PIXELS_PER_ROW = 200


class Forms(NamedTuple):
    """The forms in plain JAX that a call uses.

    Attributes:
        alone: the form of the result if the gradient is not computed.
        with_gradient: the form of the result and of the gradient if both are computed.
    """

    alone: Form
    with_gradient: Form


def default_forms(geometry: Geometry, rois: int) -> Forms:
    """Chooses the forms for `rois` RoIs per image, by a rule for the platform of the program.

    On CPUs, the default is the loop over RoIs. For fixed samples without a gradient it is the
    gather, which XLA fuses into one pass on CPUs, if there are enough cells to justify the copy of
    all pixels into one table. The gather's gradient is a scatter, which is slow on CPUs, and XLA
    computes the result again for each use in a backward pass. `benchmarks/roi_align.py` measures
    this.

    On other platforms, each iteration of a loop has to wait for the one before. So the default is
    the gather for fixed samples, and the products for adaptive samples, because their cost does not
    depend on the number of samples. This has not been measured on GPUs.

    On TPUs, the products are also the default for small maps. Their cost is the side of a RoI's
    cells times the pixels of all levels, while the cost of the gather with its scatter is the
    number of rows that it moves, `(2 * samples * cells)^2`. This follows the compiler's estimates;
    it has not been measured on a TPU.
    """
    pixels = sum(geometry.areas)
    if platform() == "cpu":
        many = 2 * rois * geometry.output_size**2 > pixels
        return Forms("gather" if geometry.sampling_ratio and many else "window", "window")
    rows = (2 * geometry.sampling_ratio * geometry.output_size) ** 2
    small = platform() == "tpu" and geometry.output_size * pixels <= PIXELS_PER_ROW * rows
    return Forms("gather", "gather") if geometry.sampling_ratio and not small else Forms("matmul", "matmul")
