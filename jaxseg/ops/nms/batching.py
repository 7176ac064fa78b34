"""The conversion of an operation on one image to a single call for a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.ops.implementation import dispatch


def dispatch_images(
    implementation: str | None, *operands: Any, kernel: Callable[..., Any], plain: Callable[..., Any], obstacle: str | None = None
) -> Any:
    """Calls `dispatch` for one image; under `jax.vmap` there is one call with all images.

    So a kernel is launched once, whatever the number of images, and on a mesh each device processes
    its part of them. Calls of `jax.vmap` may be nested.

    Args:
        implementation: see `dispatch`.
        operands: arrays and trees of arrays of one image.
        kernel: the function for GPUs, from the operands of a batch to its results.
        plain: the same function for any backend.
        obstacle: see `dispatch`.

    Raises:
        ImplementationError: see `dispatch`.
    """

    @jax.custom_batching.custom_vmap
    def run(*batch: Any) -> Any:
        return dispatch(implementation, *batch, kernel=kernel, plain=plain, obstacle=obstacle)

    @run.def_vmap
    def run_batches(size: int, is_batched: Any, *batches: Any) -> tuple[Any, Any]:
        def merged(array: jax.Array, has_axis: bool) -> jax.Array:
            array = array if has_axis else jnp.broadcast_to(array, (size, *array.shape))
            return array.reshape(size * array.shape[1], *array.shape[2:])

        results = run(*jax.tree.map(merged, batches, tuple(is_batched)))
        images = jax.tree.leaves(batches)[0].shape[int(jax.tree.leaves(is_batched)[0])]
        results = jax.tree.map(lambda array: array.reshape(size, images, *array.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return jax.tree.map(lambda array: array[0], run(*jax.tree.map(lambda array: array[None], operands)))
