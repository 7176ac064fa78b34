"""RoIAlign over a feature pyramid: bilinear samples, averaged in the cells of a grid over each box.

Sampling and averaging are separable. The result is `rows @ features @ columns^T`, where
`rows [P, h]` has the mean bilinear weights of the samples of each cell, whatever their number. Three
forms in plain JAX build on that and have the same results; "xla" takes the best of them, see
`choice.py`.

- `gather.py` adds up the pixels around each sample, for a fixed number of samples.
- `matmul.py` multiplies whole levels with the weights: its cost grows with the area of the levels
  and not with the number of samples.
- `window.py` goes through the RoIs one by one and multiplies the pixels under each with small
  matrices. It needs the least arithmetic and no scatter, but is sequential: it is for CPUs.

`kernel.py` is the way to the kernels for GPUs ("mosaic_gpu"), `bilinear.py` has what all of them
share, and `operation.py` puts them together.
"""

from jaxseg.ops.roi_align.choice import FORMS, Form
from jaxseg.ops.roi_align.levels import pyramid_levels
from jaxseg.ops.roi_align.operation import roi_align

__all__ = ["FORMS", "Form", "pyramid_levels", "roi_align"]
