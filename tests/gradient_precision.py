"""Measures the errors of float32 gradients, ours and the original's, against float64.

The script takes a minute.

python tests/gradient_precision.py yolact_im400_r101 train
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import flax
import jax
import jax.numpy as jnp
import numpy as np
from goldens import golden_folder
from originals import load_run, original_name, training_batch


def gradient_norms(name: str, batch_norm: str, dtype: type) -> dict[str, float]:
    """Returns the norm of each parameter's gradient, with all arithmetic in `dtype`."""
    run = load_run(golden_folder(), name, **{"model.batch_norm": batch_norm})
    variables, batch = jax.tree.map(lambda x: np.asarray(x, dtype), run.variables), training_batch(run)
    batch = batch.replace(images=batch.images.astype(dtype), targets=batch.targets.replace(boxes=batch.targets.boxes.astype(dtype)))
    model = run.model.clone(dtype=jnp.dtype(dtype))

    def total(params: dict) -> jax.Array:
        options = {"train": True, "method": "losses", "rngs": {"sampling": jax.random.key(0)}, "mutable": ["batch_stats"]}
        return sum(model.apply({**variables, "params": params}, batch, **options)[0].values())

    gradients = jax.jit(jax.grad(total))(variables["params"])
    return {
        path: float(np.linalg.norm(g)) for path, g in flax.traverse_util.flatten_dict(jax.tree.map(np.ravel, gradients), sep="/").items()
    }


def main(name: str = "yolact_im400_r101", batch_norm: str = "train") -> None:
    """Prints the relative errors of both sides."""
    run = load_run(golden_folder(), name)
    ours = gradient_norms(name, batch_norm, np.float32)
    recorded = run.json("train")[f"bn_{batch_norm}"]["grad_norm"]
    theirs = {path: norm for path in ours if (norm := recorded[original_name(path, run.config)])}
    jax.config.update("jax_enable_x64", True)
    # Where the model does not use its dtype, it uses float32 by this name.
    jnp.float32 = jnp.float64
    exact = gradient_norms(name, batch_norm, np.float64)
    for whose, norms in (("ours", ours), ("original", theirs)):
        total = np.sqrt(sum(norms[path] ** 2 for path in theirs) / sum(exact[path] ** 2 for path in theirs)) - 1
        errors = [abs(norms[path] / exact[path] - 1) for path in theirs]
        print(f"{whose}: norm of all {total:+.1e}; single layers: median {np.median(errors):.1e}, worst {max(errors):.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
