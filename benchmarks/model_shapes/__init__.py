"""The shapes that real models give to RoIAlign and to non-maximum suppression.

Tests check the operations at these shapes, and benchmarks time them. Sizes come from the presets in
`configs/`, so that they change together with a preset. Each shape makes inputs like those of a
model from a seed, and has the keyword arguments of its operation. `tiny` reduces a shape to a size
that an interpreter of kernels can run.
"""
