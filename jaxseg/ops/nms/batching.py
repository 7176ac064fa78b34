"""How an operation on one image becomes one call for a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.ops.implementation import dispatch


def dispatch_images(
    implementation: str | None, *operands: Any, kernel: Callable[..., Any], plain: Callable[..., Any], obstacle: str | None = None
) -> Any:
    """`dispatch` for one image; under `jax.vmap` it runs once, and its batch is all images.

    So a kernel is launched once however many images there are, and on a mesh each device does its
    part of them. The calls of `jax.vmap` may be nested.

    Args:
        implementation: see `dispatch`.
        operands: arrays, and trees of arrays, of one image.
        kernel: takes the operands of a batch and gives its results.
        plain: likewise.
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
