"""`python eval.py`: what it prints and writes, and its errors, which are one sentence each."""

import importlib.util
import json
import logging
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import optax
import pytest
import tiny_yolact
import white_boxes
from tiny_pictures import huge_png
from tiny_training import programs_kept_in

from jaxseg import picture_files
from jaxseg.commands import evaluate as commands
from jaxseg.config import Config, override
from jaxseg.data.sources.shapes import write_shapes
from jaxseg.evaluation.detect import DRAWN
from jaxseg.evaluation.masks import decode_rle
from jaxseg.models import RcnnConfig
from jaxseg.picture_files import find_pictures
from jaxseg.predictor import ImageError
from jaxseg.training.checkpoint import Checkpoints, save_config
from jaxseg.training.step import create_state

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """Shares compiled programs between the calls, which have few different ones."""
    with programs_kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Makes a run of the tiny YOLACT with 4 validation images of shapes and two checkpoints."""
    root = tmp_path_factory.mktemp("eval_cli")
    write_shapes(root / "data", train=2, val=4, size=64)
    config = override(tiny_yolact.CONFIG, {"data.root": str(root / "data"), "eval.batch_size": 2})
    variables = tiny_yolact.variables()
    state = create_state(variables, optax.sgd(0.0), config.train)
    checkpoints = Checkpoints(root / "run", 2)
    for step in (1, 2):
        checkpoints.save(state.replace(step=np.int32(step)), {})
    checkpoints.close()
    save_config(root / "run", config)
    return root / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "b.png"), rng.integers(0, 256, (70, 50, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "a.jpg"), rng.integers(0, 256, (40, 90), dtype=np.uint8))
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture, and not called one")
    return folder


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Returns the `main` of eval.py, which runs in an empty folder."""
    specification = importlib.util.spec_from_file_location("eval_script", REPOSITORY / "eval.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    # The script configures logging for its whole process.
    root, own = logging.getLogger(), logging.getLogger("jaxseg")
    before = root.handlers[:], root.level, own.level
    yield lambda *arguments: script.main([str(argument) for argument in arguments])
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


def test_metrics_of_a_run(evaluate, run_folder, tmp_path, capsys):
    assert evaluate("--checkpoint", run_folder) == 0
    output = capsys.readouterr().out
    assert re.search(r"^box +\d+\.\d\d( +\d+\.\d\d){10}$", output, re.MULTILINE)
    assert re.search(r"^mask +\d+\.\d\d( +\d+\.\d\d){10}$", output, re.MULTILINE)
    for name in tiny_yolact.CONFIG.data.class_names:
        assert re.search(rf"^{name}( +(\d+\.\d\d|-)){{4}}$", output, re.MULTILINE)
    assert "Loading" not in output
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert 0 <= metrics["mask/AP"] <= 1
    boxes = json.loads((tmp_path / "results" / "bbox_detections.json").read_text())
    masks = json.loads((tmp_path / "results" / "mask_detections.json").read_text())
    assert len(boxes) == len(masks) > 0
    assert set(boxes[0]) == {"image_id", "category_id", "bbox", "score"}
    assert set(masks[0]) == {"image_id", "category_id", "segmentation", "score"}
    assert {row["category_id"] for row in boxes} <= set(tiny_yolact.CONFIG.data.category_ids)


def test_options_of_an_evaluation(evaluate, run_folder, tmp_path):
    options = ["--limit", 3, "--top_k", 2, "--step", 1, "--nms", "cross_class", "--config.eval.batch_size=3", "--output", "elsewhere"]
    assert evaluate("--checkpoint", run_folder, *options) == 0
    rows = json.loads((tmp_path / "elsewhere" / "bbox_detections.json").read_text())
    counts = [[row["image_id"] for row in rows].count(number) for number in {row["image_id"] for row in rows}]
    assert len(counts) == 3
    assert max(counts) <= 2


def test_drawings_of_a_folder(evaluate, run_folder, pictures, tmp_path, capsys):
    assert evaluate("--checkpoint", run_folder, "--images", pictures, "--score_threshold", 0.0, "--top_k", 3) == 0
    drawn = {path.name for path in (tmp_path / "results").iterdir()}
    assert drawn == {"a.png", "b.png", "detections.json"}
    found = json.loads((tmp_path / "results" / "detections.json").read_text())
    assert found["skipped"] == [str(pictures / "broken.jpg")]
    assert "broken.jpg is no picture" in capsys.readouterr().err
    assert [(entry["file_name"], entry["height"], entry["width"]) for entry in found["images"]] == [
        (str(pictures / "a.jpg"), 40, 90),
        (str(pictures / "b.png"), 70, 50),
    ]
    for entry in found["images"]:
        assert len(entry["detections"]) == 3
        for row in entry["detections"]:
            assert set(row) == {"box", "class", "name", "score", "rle", "polygons"}
            assert decode_rle([row["rle"]]).shape == (1, entry["height"], entry["width"])
    assert cv2.imread(str(tmp_path / "results" / "b.png")).shape == (490, 350, 3), "small pictures must be enlarged"


def test_drawings_leave_out_what_is_unlikely(evaluate, run_folder, pictures, tmp_path):
    """The thresholds of the drawings, 0.15 and 15, are not those of the metrics."""
    assert evaluate("--checkpoint", run_folder, "--images", pictures / "b.png") == 0
    rows = json.loads((tmp_path / "results" / "detections.json").read_text())["images"][0]["detections"]
    assert len(rows) <= DRAWN.top_k
    assert all(row["score"] > DRAWN.score_threshold for row in rows)
    assert (DRAWN.score_threshold, DRAWN.top_k) == (0.15, 15)


def test_a_picture_that_says_it_is_huge_is_skipped(evaluate, run_folder, pictures, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "huge.png").write_bytes(huge_png(50_000, 50_000))
    shutil.copy(pictures / "b.png", tmp_path / "in")
    assert evaluate("--checkpoint", run_folder, "--images", "in") == 0
    found = json.loads((tmp_path / "results" / "detections.json").read_text())
    assert (len(found["images"]), found["skipped"]) == (1, ["in/huge.png"])
    assert "more pixels than OpenCV allows (2**30). It is skipped." in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(OSError(28, "No space left on device", "a.png"), 2), (KeyboardInterrupt(), 130)])
def test_what_was_found_before_an_interruption_is_kept(evaluate, run_folder, pictures, tmp_path, monkeypatch, capsys, error, code):
    write_picture, written = picture_files.write_picture, []

    def write_once(path, drawing):
        if written:
            raise error
        written.append(path)
        write_picture(path, drawing)

    monkeypatch.setattr(picture_files, "write_picture", write_once)
    assert evaluate("--checkpoint", run_folder, "--images", pictures) == code
    found = json.loads((tmp_path / "results" / "detections.json").read_text())
    assert [entry["file_name"] for entry in found["images"]] == [str(pictures / "a.jpg")]
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    assert ("OSError: No space left on device: a.png." if code == 2 else "interrupted") in captured


def test_pictures_in_folders_below_are_told_of(evaluate, run_folder, pictures, tmp_path, capsys):
    (tmp_path / "in" / "below").mkdir(parents=True)
    shutil.copy(pictures / "b.png", tmp_path / "in" / "below")
    assert evaluate("--checkpoint", run_folder, "--images", "in") == 2
    assert "1 pictures lie in folders below in; --images 'in/**/*' takes them, too" in capsys.readouterr().err
    shutil.copy(pictures / "b.png", tmp_path / "in")
    assert evaluate("--checkpoint", run_folder, "--images", "in") == 0
    assert "1 pictures lie in folders below in" in capsys.readouterr().err
    assert len(find_pictures("in/**/*")) == 2


def damaged(run_folder: Path, folder: Path, change) -> Path:
    """Copies the run and changes nothing but its largest file."""
    shutil.copytree(run_folder, folder)
    largest = max((folder / "checkpoints" / "2" / "variables").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(change(bytearray(largest.read_bytes())))
    return folder


def one_bit(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 4
    return content


@pytest.mark.parametrize("change", [one_bit, lambda content: content[:100], lambda content: b""])
def test_a_damaged_checkpoint_is_told_of(evaluate, run_folder, tmp_path, capsys, change):
    folder = damaged(run_folder, tmp_path / "damaged", change)
    assert evaluate("--checkpoint", folder) == 2
    error = capsys.readouterr().err
    assert re.search(r"checkpoints/2 cannot be read \(its file .* is not what was saved.*; --step takes another, of 1\.", error)
    assert "Traceback" not in error
    assert evaluate("--checkpoint", folder, "--step", 1, "--limit", 1) == 0


@pytest.mark.parametrize("content", ['{"1": 0.5, "2"', "[1, 2]", '{"one": 0.5}', '{"1": "high"}', '{"1": NaN}'])
def test_a_damaged_file_of_evaluations_is_told_of(evaluate, run_folder, tmp_path, capsys, content):
    shutil.copytree(run_folder, tmp_path / "cut")
    (tmp_path / "cut" / "evaluations.json").write_text(content)
    assert evaluate("--checkpoint", tmp_path / "cut") == 2
    assert "evaluations.json is " in capsys.readouterr().err


def test_what_does_not_fit_is_never_skipped(evaluate, run_folder, capsys):
    """A head with random weights would detect meaningless objects."""
    more = ["--config.model.num_prototypes=16", "--config.init.skip_mismatched=True"]
    assert evaluate("--checkpoint", run_folder, *more) == 2
    error = capsys.readouterr().err
    assert "Different shapes, in the weights and in the model" in error
    assert "skip_mismatched" not in error
    assert "Take the configuration that these weights were trained with" in error


@pytest.mark.parametrize(
    ("content", "sentence"), [("[1]", "holds a list"), (b'{"name": "\xe9"}', "not UTF-8"), ("[" * 10**5, "nested too")]
)
def test_a_saved_configuration_that_is_none_is_told_of(evaluate, tmp_path, capsys, content, sentence):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert evaluate("--checkpoint", tmp_path) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("images", [None, "b.png"])
def test_benchmark(evaluate, run_folder, pictures, images, capsys):
    options = [] if images is None else ["--images", pictures / images]
    assert evaluate("--checkpoint", run_folder, "--benchmark", *options) == 0
    output = capsys.readouterr().out
    for batch_size in (1, 2):
        for phase in ("preparation", "network and detection", "post-processing", "total"):
            assert re.search(rf"^ +{batch_size} +{phase} +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d$", output, re.MULTILINE)
        assert re.search(rf"^ +{batch_size} +\d+\.\d pictures/s; the first batch took \d+\.\d s", output, re.MULTILINE)


@pytest.fixture
def padded(evaluate, use_detector, monkeypatch, tmp_path):
    """Runs eval.py with inputs of two shapes, given the frame of the masks and its arguments."""
    white_boxes.write_dataset(tmp_path / "data", 7)
    config = override(white_boxes.CONFIG, {"data.root": str(tmp_path / "data"), "eval.batch_size": 2})
    monkeypatch.setattr(commands, "load_detector", lambda *_, **__: (config, white_boxes.VARIABLES))

    def run(mask_frame, *arguments):
        use_detector(white_boxes.PaddedDetector(mask_frame))
        return evaluate("--checkpoint", "any", *arguments)

    return run


def test_a_detector_without_masks(padded, tmp_path, capsys):
    assert padded(None) == 0
    output = capsys.readouterr().out
    assert re.search(r"^box +100\.00( +100\.00){10}$", output, re.MULTILINE)
    assert "mask" not in output
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"metrics.json", "bbox_detections.json"}
    assert padded(None, "--images", "data/val2017", "--output", "drawings") == 0
    entries = json.loads((tmp_path / "drawings" / "detections.json").read_text())["images"]
    assert [len(entry["detections"]) for entry in entries] == [2] * 7 + [0]
    for entry in entries[:7]:
        assert set(entry["detections"][0]) == {"box", "class", "name", "score"}
        assert (tmp_path / "drawings" / f"{Path(entry['file_name']).stem}.png").is_file()


@pytest.mark.parametrize("mask_frame", ["box", None])
def test_benchmark_in_inputs_of_two_shapes(padded, mask_frame, capsys):
    assert padded(mask_frame, "--benchmark") == 0
    output = capsys.readouterr().out
    for batch_size in (1, 2):
        assert re.search(rf"^ +{batch_size} +total +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d$", output, re.MULTILINE)


def test_a_rule_of_nms_for_a_detector_that_has_one(evaluate, monkeypatch, capsys):
    monkeypatch.setattr(commands, "load_detector", lambda *_, **__: (Config(model=RcnnConfig()), {}))
    assert evaluate("--checkpoint", "any", "--nms", "fast") == 2
    assert capsys.readouterr().err.startswith("ConfigError: nms = 'fast' cannot be chosen: config.model.kind = 'rcnn' knows one rule only")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoint", "nowhere"], r"no nowhere.config\.json; .* --config FILE"),
        (["--checkpoint", "RUN", "--step", "7"], r"no checkpoint 7 .*; there are 1, 2, latest, best"),
        (["--checkpoint", "RUN", "--limit", "-1"], r"--limit -1 is out of range"),
        (["--checkpoint", "RUN", "--score_threshold", "2"], r"score_threshold = 2\.0 is out of range"),
        (["--checkpoint", "RUN", "--nms", "slow"], r"'slow' is not one of"),
        (["--checkpoint", "RUN", "--top_k", "-3"], r"top_k = -3 is out of range"),
        (["--checkpoint", "RUN", "--config.model.depth=3"], r"Unknown config key model\.depth"),
        (["--checkpoint", "RUN", "--config.data.val_annotations=nowhere.json"], r"nowhere\.json"),
        (["--checkpoint", "RUN", "--images", "nowhere/*.jpg"], r"no picture nowhere"),
        (["--checkpoint", "RUN", "--images", "RUN"], r"holds no pictures"),
        (["--checkpoint", "RUN", "--images", "PICTURES/broken.jpg"], r"None of the 1 files"),
        (["--checkpoint", "RUN", "--benchmark", "--images", "PICTURES/broken.jpg"], r"is a picture that OpenCV can read"),
        (["--checkpoint", "RUN", "--images", "PICTURES/b.png", "--output", "PICTURES"], r"would overwrite"),
        (["--checkpoint", "RUN", "--output", "PICTURES/notes.txt"], r"--output .*notes\.txt cannot be made a folder"),
        (["--checkpoint", "nowhere.pth", "--config", "configs/demo_shapes.py"], r"no weights at nowhere\.pth"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(evaluate, run_folder, pictures, arguments, sentence, capsys):
    given = [argument.replace("RUN", str(run_folder)).replace("PICTURES", str(pictures)) for argument in arguments]
    assert evaluate(*given) == 2
    captured = capsys.readouterr()
    assert re.search(sentence, captured.err)
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_checkpoint_is_asked_for(evaluate, capsys):
    with pytest.raises(SystemExit) as exit_:
        evaluate("--images", "b.png")
    assert exit_.value.code == 2
    assert "required: --checkpoint" in capsys.readouterr().err


def test_pictures_by_file_folder_and_glob(pictures):
    assert [path.name for path in find_pictures(str(pictures))] == ["a.jpg", "b.png", "broken.jpg"]
    assert find_pictures(str(pictures / "notes.txt")) == [pictures / "notes.txt"], "a file that is given by its name must be tried"
    assert [path.name for path in find_pictures(str(pictures / "*.png"))] == ["b.png"]
    with pytest.raises(ImageError, match="file, a folder or a glob"):
        find_pictures(str(pictures / "*.gif"))
