"""Deformable convolution: each tap of the kernel reads the input at a displaced point.

Two forms in plain JAX have the same results; `operation.py`, which has the call and its gradient,
selects the better one for the platform.

- `gather.py` reads the four pixels around each point.
- `matmul.py` multiplies all pixels by a matrix of weights. It suits small maps on TPUs.

`sampling.py` has the points and the weights of the pixels around them, which both forms share.
"""

from jaxseg.ops.deform_conv.operation import FORMS, Form, deform_conv

__all__ = ["FORMS", "Form", "deform_conv"]
