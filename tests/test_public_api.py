"""The public names of `import jaxseg`, their arguments, and the time that the import takes."""

import inspect
import subprocess
import sys

import pytest

import jaxseg

SIGNATURES = {
    "load_config": ["path", "overrides"],
    "build_model": ["config"],
    "init_variables": ["model", "config", "seed"],
    "load_weights": ["source", "config", "*step", "*skip_mismatched", "*whole"],
    "train": ["config", "workdir"],
    "evaluate": ["config", "variables", "dataset", "*batch_size", "*limit", "*mesh", "*score_threshold", "*top_k", "*output"],
    "Predictor": ["config", "variables", "*score_threshold", "*top_k", "*nms", "*batch_size", "*masks"],
    "Prediction": ["boxes", "masks", "scores", "classes", "names", "picture_size", "mask_scores"],
    "Config": ["*name", "*model", "*data", "*init", "*train", "*eval"],
}
ERRORS = {"UserError", "ConfigError", "ImageError", "WeightsError"}

# Modules that only training, evaluation or one command needs.
HEAVY = ("orbax", "grain", "tensorflow_datasets", "tensorboardX", "pandas", "matplotlib")


def arguments(name: str) -> list[str]:
    """Returns the names of the arguments; a star precedes those that must be given by name."""
    parameters = inspect.signature(getattr(jaxseg, name)).parameters.values()
    return [f"*{p.name}" if p.kind is p.KEYWORD_ONLY else p.name for p in parameters]


def test_the_names():
    assert set(jaxseg.__all__) == {*SIGNATURES, *ERRORS}
    assert set(jaxseg.__all__) <= set(dir(jaxseg))


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_arguments(name):
    assert arguments(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_each_name_is_explained(name):
    explained = inspect.getdoc(getattr(jaxseg, name))
    assert not explained.startswith(f"{name}("), "what a dataclass without a docstring says"
    assert explained.splitlines()[0].endswith((".", ":", ","))


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_of_the_user_is_one_family(name):
    assert issubclass(getattr(jaxseg, name), jaxseg.UserError)
    assert issubclass(jaxseg.UserError, ValueError)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'jaxseg' has no attribute 'tarin'"):
        jaxseg.tarin  # noqa: B018


def test_the_import_brings_nothing_that_only_training_needs():
    code = f"import sys, jax, flax, optax; before = set(sys.modules); import jaxseg; print(*(set({HEAVY}) & (set(sys.modules) - before)))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.split() == []
