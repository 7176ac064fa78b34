"""Pallas kernels for GPUs (Mosaic GPU: NVIDIA, compute capability 9.0 and later). Each has a function in `jaxseg.ops` with the
same results as its reference, and as what runs everywhere else."""
