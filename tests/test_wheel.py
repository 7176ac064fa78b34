"""The wheel contains all that a user needs; it is installed and used outside of the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments), "--no-deps", "--no-index", "--quiet"]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Builds the wheel from a copy, because setuptools reuses old files of its build folder."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("jaxseg", "configs"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", built)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    """Runs Python in an empty folder, in which jaxseg is imported from the installed wheel."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", wheel, "--target", target)
    paths = (target, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}

    def run(*arguments: str) -> str:
        # With -S, Python reads no path files, such as that of an editable installation.
        command = [sys.executable, "-S", *arguments]
        folder = tmp_path_factory.mktemp("empty")
        answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    assert Path(run("-c", "import jaxseg; print(jaxseg.__file__)").strip()) == target / "jaxseg" / "__init__.py"
    return run


def test_it_holds_every_module_and_every_config(wheel):
    ours = [*REPOSITORY.glob("jaxseg/**/*.py"), REPOSITORY / "jaxseg" / "py.typed"]
    expected = {path.relative_to(REPOSITORY).as_posix() for path in ours}
    expected |= {f"jaxseg/configs/{path.name}" for path in REPOSITORY.glob("configs/*.py")}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


def test_every_shipped_config_is_found_by_its_name(outside):
    script = "import sys, jaxseg\nfor name in sys.argv[1:]: print(jaxseg.load_config(name).name)"
    names = sorted(path.stem for path in REPOSITORY.glob("configs/*.py"))
    assert outside("-c", script, *names, "yolact_r50.py", "configs/yolact_r50.py").split() == [*names, "yolact_r50", "yolact_r50"]


def test_a_shipped_model_is_traced(outside):
    script = """
import jax, jaxseg
config = jaxseg.load_config("demo_shapes")
variables = jax.eval_shape(lambda: jaxseg.init_variables(jaxseg.build_model(config), config))
print(len(jax.tree.leaves(variables)) > 10)
"""
    assert outside("-c", script) == "True\n"


def test_the_commands_are_there(outside):
    """Each command can be run as a module, and by the name that is installed."""
    script = """
import contextlib, runpy, sys
from importlib.metadata import distribution
sys.argv = ["command", "--help"]
for name, module in (("jaxseg-train", "train"), ("jaxseg-eval", "evaluate")):
    with contextlib.suppress(SystemExit):
        runpy.run_module(f"jaxseg.commands.{module}", run_name="__main__")
    print("next")
    with contextlib.suppress(SystemExit):
        distribution("jaxseg").entry_points[name].load()(["--help"])
    print("next")
"""
    *helps, _ = outside("-c", script).split("next\n")
    assert len(helps) == 4
    assert all("--config" in text for text in helps)
