"""The documents agree with the code in configuration keys, defaults, links and CI commands."""

import dataclasses
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from jaxseg.config import Config
from jaxseg.models import RcnnConfig, RetinaNetConfig, YolactConfig

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_DOCUMENTS = [*DOCUMENTS, ROOT / "CHANGELOG.md"]


def settings(config: object, prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        key = f"{prefix}{field.name}"
        values |= settings(value, f"{key}.") if dataclasses.is_dataclass(value) else {key: value}
    return values


def listed(text: str) -> dict[str, str]:
    """Returns the key and the default of each row of the reference."""
    return dict(re.findall(r"^\| `([\w.]+)` \| [^|]+(?:/[^|]+)*\| ([^|]*) \|", text, re.M))


def assert_lists(rows: dict[str, str], expected: dict[str, object], spoken: set[str]) -> None:
    """Checks that every key is listed with its default; some defaults are given in words."""
    assert sorted(rows) == sorted(expected)
    assert {key: rows[key] for key in expected if key not in spoken} == {
        key: f"`{value!r}`" for key, value in expected.items() if key not in spoken
    }


def test_the_reference_lists_every_key_with_its_default():
    rows = listed((ROOT / "docs" / "config.md").read_text())
    assert_lists(rows, settings(Config(model=YolactConfig())), {"model.anchor_scales", "data.class_names", "data.category_ids"})


def test_the_reference_of_rcnn_lists_every_key_with_its_default():
    rcnn, retinanet = (ROOT / "docs" / "config_rcnn.md").read_text().split("# RetinaNet\n")
    assert_lists(listed(rcnn), settings(RcnnConfig(), "model."), set())
    own = {key: value for key, value in settings(RetinaNetConfig(), "model.").items() if key.count(".") == 1}
    assert_lists(listed(retinanet), own, {"model.anchor_sizes"})


@pytest.mark.parametrize("document", ALL_DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    for name in re.findall(r"\b((?:configs|docs|benchmarks|tests|jaxseg)/[\w/]+\.\w+)\b", document.read_text()):
        assert (ROOT / name).exists() or name == "configs/my_data.py", name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_members_of_modules_exist(document):
    for name, path in re.findall(r"`(\w+)`\s+of\s+`(jaxseg/[\w/]+)\.py`", document.read_text()):
        assert hasattr(importlib.import_module(path.replace("/", ".")), name), (name, path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_modules_exist(document):
    for name in re.findall(r"python -m (jaxseg[\w.]*\w)", document.read_text()):
        assert importlib.util.find_spec(name), name


@pytest.mark.parametrize("document", ALL_DOCUMENTS, ids=lambda path: path.name)
def test_tables_have_a_header_and_rows_of_one_length(document):
    """A table without a header would be rendered as plain text."""
    for table in re.findall(r"(?:^\|.*\n)+", document.read_text(), re.M):
        rows = table.splitlines()
        assert len(rows) >= 3, table
        assert re.fullmatch(r"(\| ?:?-+:? ?)+\|", rows[1]), table
        assert len({row.count("|") - row.count(r"\|") for row in rows}) == 1, table


def test_ci_runs_the_readmes_test_command():
    commands = re.findall(r"```bash\n(.+?)\n```", (ROOT / "README.md").read_text(), re.S)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_ci_builds_the_api_reference_as_contributing_says():
    command = ".venv/bin/python docs/build_api.py"
    for path in ("CONTRIBUTING.md", ".ci/run"):
        assert command in (ROOT / path).read_text().splitlines(), path
