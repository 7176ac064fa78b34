"""The metrics of training: the records on disk, the lines of the log, and the averages in them."""

from tiny_training import records

from jaxseg.training.metrics import MetricsWriter, MovingAverages, losses_text, progress_line


def test_records_after_the_checkpoint_are_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 3, "a": 3.0}\n{"step": 4, "a"')
    writer = MetricsWriter(tmp_path, 2)
    writer.write(3, {"a": float("nan")})
    writer.close()
    assert records(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "a": None}]


def test_the_progress_line_has_the_originals_names():
    values = {f"loss/{name}": i + 0.5 for i, name in enumerate(("total", "mask", "semantic", "box", "class"))}
    line = progress_line(9, 69, values | {"step_time": 60.0, "data_time": 0.25, "learning_rate": 1.0})
    assert line == (
        "      9/69 || B: 3.500 | C: 4.500 | M: 1.500 | S: 2.500 | T: 0.500 || ETA: 1:00:00 || step: 60.000 s | data: 0.250 s || rate: 1"
    )


def test_losses_of_other_names_come_first():
    text = losses_text({f"loss/{name}": 0.25 for name in ("total", "mask", "rpn_class", "box", "rpn_box", "class")})
    assert text == "rpn_box: 0.250 | rpn_class: 0.250 | B: 0.250 | C: 0.250 | M: 0.250 | T: 0.250"


def test_averages_cover_the_window_and_leave_out_what_is_not_finite():
    averages = MovingAverages(window=2)
    for value in (100.0, 1.0, float("nan"), 2.0):
        averages.add({"loss/box": value})
    assert averages.means() == {"loss/box": 1.5}
