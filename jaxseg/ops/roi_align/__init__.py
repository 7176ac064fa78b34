"""RoIAlign over a feature pyramid: bilinear samples, averaged in the cells of a grid over each box.

Sampling and averaging are separable. The result is `rows @ features @ columns^T`, where
`rows [P, h]` has the mean bilinear weights of the samples of each cell, for any number of samples.
Three forms in plain JAX use this formula and have the same results; "xla" selects the best of them,
see `choice.py`.

- `gather.py` adds up the pixels around each sample, for a fixed number of samples.
- `matmul.py` multiplies whole levels by the weights: its cost grows with the area of the levels
  and not with the number of samples.
- `window.py` loops over the RoIs, and multiplies the pixels under each RoI by small matrices. It
  needs the least arithmetic and no scatter, but it is sequential, so it is meant for CPUs.

`kernel.py` calls the kernels for GPUs ("mosaic_gpu"), `bilinear.py` contains the parts that all
forms share, and `operation.py` combines them.
"""

from jaxseg.ops.roi_align.choice import FORMS, Form
from jaxseg.ops.roi_align.levels import pyramid_levels
from jaxseg.ops.roi_align.operation import roi_align

__all__ = ["FORMS", "Form", "pyramid_levels", "roi_align"]
