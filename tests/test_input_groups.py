"""Batches of one input size each, which show all images equally often and can be resumed."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_pictures import SIZE, FakeDataset, assert_equal, take

from jaxseg.config import Config, override
from jaxseg.data.sources.from_config import open_dataset
from jaxseg.data.stream.evaluation import evaluation_batches
from jaxseg.data.stream.input_groups import InputGroups, InputStreams, batch_order
from jaxseg.data.stream.targets import to_targets
from jaxseg.data.stream.training import TrainingIterator, training_iterator
from jaxseg.data.views.from_spec import view_rule
from jaxseg.models import YolactConfig
from jaxseg.structures import InputSpec, Resize

INPUT_SIZES = ((32, 48), (48, 32))
SPEC = InputSpec(INPUT_SIZES, (16, 16), None, 3, Resize("opencv", (24, 32), 48), "box")
# The pictures of `FakeDataset` are 30 wide and 20 to 32 high; a square counts as a portrait.
PORTRAITS = (10, 11, 12)
CHANGES = {"data.augment.photometric": False, "data.augment.expand": False, "data.augment.crop": False, "data.max_objects": 5}


def iterator(dataset: FakeDataset | None = None, batch_size: int = 4, workers: int = 0, spec=SPEC, **arguments) -> TrainingIterator:
    config = override(Config(model=YolactConfig()), {**CHANGES, "train.batch_size": batch_size, "data.workers": workers})
    return training_iterator(config, spec, dataset=dataset or FakeDataset(), **{"seed": 7, **arguments})


def input_size(batch) -> tuple[int, ...]:
    return batch.images.shape[1:3]


def test_squares_go_with_portraits_as_in_the_originals():
    """The rule is h / w >= 1 in maskrcnn-benchmark, and not w > h in detectron2 and mmdetection."""
    sizes = np.load(Path(__file__).parent / "data" / "two_stage" / "input.npz")["hw"]
    dataset = FakeDataset(len(sizes))
    dataset.picture_sizes = sizes.astype(np.int32)
    spec = InputSpec(((800, 1344), (1344, 800)), None, None, 3, Resize("pillow", (640, 800), 1333), "box")
    groups = InputGroups.of(dataset, view_rule(spec))
    assert groups.input_sizes == spec.input_sizes
    np.testing.assert_array_equal(groups.groups == 1, sizes[:, 0] >= sizes[:, 1])


def test_each_batch_has_one_input_size_and_the_pictures_sizes_within_it():
    batches = take(iterator(), SIZE * 2)
    assert {input_size(batch) for batch in batches} == set(INPUT_SIZES)
    for batch in batches:
        assert (np.isin(batch.indices, PORTRAITS) == (input_size(batch) == INPUT_SIZES[1])).all()
        assert batch.targets.masks.shape == (4, 5, 16, 2)
        assert batch.targets.semantic is None
        for image, (height, width) in zip(batch.images, batch.image_sizes, strict=True):
            assert height in (24, 32) or width in (24, 32, 48)
            assert not image[height:].any()
            assert not image[:, width:].any()
    assert {min(size) for batch in batches for size in batch.image_sizes.tolist()} == {24, 32}


def test_a_spec_with_one_input_size_leaves_the_stream_as_it_was():
    """Runs of YOLACT can be resumed that were started before there were several input sizes."""
    expected = [[7, 9, 0, 8], [4, 2, 11, 6], [10, 1, 3, 12]]
    one = InputSpec(((48, 48),), (16, 16), None, 3, Resize("opencv", (24, 32), 48), "box")
    assert [batch.indices.tolist() for batch in take(iterator(spec=one), 3)] == expected
    landscapes = FakeDataset(10)
    orders = [[batch.indices.tolist() for batch in take(iterator(landscapes, spec=spec), 5)] for spec in (SPEC, one)]
    assert orders[0] == orders[1]


def test_all_images_are_seen_equally_often():
    """Each image is seen `batch_size` times in as many batches as there are images."""
    batches = take(iterator(batch_size=2), SIZE)
    assert np.bincount(np.concatenate([batch.indices for batch in batches]), minlength=SIZE).tolist() == [2] * SIZE
    portraits = np.concatenate([batch.indices for batch in batches if input_size(batch) == INPUT_SIZES[1]])
    assert [sorted(portraits[:3]), sorted(portraits[3:])] == [list(PORTRAITS)] * 2


def test_turns_are_spread_evenly_and_differ_from_period_to_period():
    """At any time, the number of batches of a group differs from its share by at most two."""
    counts = (300, 100, 7)
    orders = [batch_order(counts, 3, period) for period in range(2)]
    assert not np.array_equal(*orders)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(407))
        group = np.searchsorted(np.cumsum(counts), order, side="right")
        for number, count in enumerate(counts):
            own = order[group == number]
            np.testing.assert_array_equal(own, np.sort(own))
            had = np.cumsum(group == number)
            assert np.abs(had - np.arange(1, 408) * count / 407).max() < 2
    np.testing.assert_array_equal(batch_order(counts, 3, 1), orders[1])


def test_groups_draw_augmentations_of_their_own():
    """The first image of one group has another augmentation than the first of the other group."""
    streams = InputStreams(InputGroups.of(FakeDataset(), view_rule(SPEC)).members, seed=7)
    slots = np.concatenate([streams.batch(number, 1, slice(0, 1)) for number in range(3 * SIZE)])
    assert np.bincount(slots[:, 0]).tolist() == [3] * SIZE
    assert len(np.unique(slots[:, 1])) == 3 * SIZE


# `test_stream.py` has worker processes.
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_restored_state_continues_bit_for_bit(workers):
    reference = take(iterator(), 18)
    running = iterator(workers=workers)
    assert_equal([jax.tree.map(np.array, next(running)) for _ in range(4)], reference[:4])
    state = json.loads(json.dumps(running.get_state()))
    assert state == {"images_seen": 16, "dataset_size": SIZE}
    running.close()
    fresh = iterator(workers=workers)
    fresh.set_state(state)
    assert_equal(take(fresh, 14), reference[4:])


def test_processes_share_the_batches_of_one():
    reference = take(iterator(), 2 * SIZE)
    parts = [take(iterator(process_index=p, process_count=2), SIZE) for p in range(2)]
    assert [input_size(batch) for batch in parts[0]] == [input_size(batch) for batch in parts[1]]
    joined = [jax.tree.map(lambda *rows: np.concatenate(rows), *pieces) for pieces in zip(*parts, strict=True)]
    assert_equal(joined, reference[:SIZE])

    resumed = iterator(process_index=3, process_count=4)
    resumed.set_state({"images_seen": 4 * SIZE, "dataset_size": SIZE})
    assert_equal(take(resumed, SIZE), [jax.tree.map(lambda rows: rows[3:], batch) for batch in reference[SIZE:]])


def test_a_broken_image_is_replaced_by_one_with_its_input_size():
    broken = (1, 4, 11)
    whole = take(iterator(), 2 * SIZE)
    source = iterator(FakeDataset(broken=broken))
    for batch, original in zip(take(source, 2 * SIZE), whole, strict=True):
        assert input_size(batch) == input_size(original)
        assert not np.isin(batch.indices, broken).any()
        assert (np.isin(batch.indices, PORTRAITS) == np.isin(original.indices, PORTRAITS)).all()
    assert sorted(source.broken_images) == list(broken)


def test_evaluation_shows_every_image_once_one_input_size_after_the_other():
    dataset = FakeDataset(broken=(11,))
    batches = list(evaluation_batches(dataset, SPEC, batch_size=4, max_objects=4))
    assert [input_size(batch) for batch in batches] == [INPUT_SIZES[0]] * 3 + [INPUT_SIZES[1]]
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1], [10, 12, -1, -1]]
    sample, view = dataset[5], view_rule(SPEC).whole(dataset[5].picture_size)
    assert batches[1].images.dtype == np.float32
    np.testing.assert_array_equal(batches[1].images[1], view.evaluation_image(sample.image))
    assert batches[1].image_sizes[1].tolist() == list(view.image_size) == [32, 38]
    assert_equal([jax.tree.map(lambda rows: rows[1], batches[1].targets)], [to_targets(sample, view, SPEC, 4)])
    (batch,) = evaluation_batches(dataset, SPEC, batch_size=2, max_objects=4, indices=[12, 10])
    assert batch.indices.tolist() == [12, 10]


def test_evaluation_gives_all_processes_as_many_batches_of_the_same_input_sizes():
    parts = [list(evaluation_batches(FakeDataset(), SPEC, batch_size=2, max_objects=4, process_index=p, process_count=2)) for p in range(2)]
    assert [input_size(batch) for batch in parts[0]] == [input_size(batch) for batch in parts[1]] == [INPUT_SIZES[0]] * 3 + [INPUT_SIZES[1]]
    seen = np.concatenate([batch.indices[batch.valid] for part in parts for batch in part])
    np.testing.assert_array_equal(np.sort(seen), np.arange(SIZE))


@pytest.mark.parametrize("rule", [pytest.param("opencv", marks=pytest.mark.slow), "pillow_truncated"])
def test_real_images_have_two_input_sizes_and_masks_in_their_boxes(coco_mini, rule):
    """Annotated masks touch all sides of their boxes, and so do their crops."""
    config = override(
        Config(model=YolactConfig()),
        {**CHANGES, "data.root": str(coco_mini), "data.workers": 0, "train.batch_size": 4, "data.max_objects": 100},
    )
    input_sizes = ((256, 448), (448, 256))
    spec = InputSpec(input_sizes, (56, 56), None, 80, Resize(rule, (224, 256), 427), "integer_box", float(rule == "pillow_truncated"))
    dataset = open_dataset(config, "train")
    assert len(InputGroups.of(dataset, view_rule(spec)).input_sizes) == 2
    source = training_iterator(config, spec, dataset=dataset, seed=1)
    batches = take(source, 2 * len(dataset) // 4)
    assert {input_size(batch) for batch in batches} == set(input_sizes)
    assert not source.broken_images
    filled = []
    for batch in batches:
        corners = batch.targets.boxes + np.array((0, 0, spec.pixel_offset, spec.pixel_offset))
        sizes = batch.image_sizes[:, None, ::-1]
        valid = batch.targets.valid
        assert (corners[valid] > -1).all()
        assert (corners[..., 2:] < sizes + 1)[valid].all()
        for row, index in np.argwhere(valid & ~batch.targets.crowd & ((corners[..., 2:] - corners[..., :2]).min(-1) > 16)):
            crop = np.unpackbits(batch.targets.masks[row, index], axis=-1)
            filled.append([crop[:3].any(), crop[-3:].any(), crop[:, :3].any(), crop[:, -3:].any()])
    assert len(filled) > 300
    assert np.mean(filled, axis=0).min() > 0.97
