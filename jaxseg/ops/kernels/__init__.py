"""Pallas kernels for NVIDIA GPUs of compute capability 9.0 and later (Mosaic GPU).

Each has a function in `jaxseg.ops` with the same results, which is its reference and runs
everywhere else. A kernel's module is imported where a program that runs the kernel is traced, and
nowhere else: on other machines no code for GPUs is loaded.
"""
