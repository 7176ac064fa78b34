"""The stream of batches is complete, reproducible and resumable; no bad image stops it."""

import json
import logging

import jax
import numpy as np
import pytest
from tiny_pictures import SIZE, FakeDataset, assert_equal, take

from jaxseg.config import Config, override
from jaxseg.data.sources.dataset import DataError
from jaxseg.data.stream.evaluation import evaluation_batches
from jaxseg.data.stream.targets import to_targets
from jaxseg.data.stream.training import TrainingIterator, training_iterator
from jaxseg.data.views.from_spec import view_rule
from jaxseg.models import YolactConfig
from jaxseg.structures import InputSpec

SPEC = InputSpec(input_sizes=((32, 32),), mask_size=(16, 16), semantic_size=(8, 8), num_classes=3)


def iterator(dataset: FakeDataset | None = None, batch_size: int = 4, workers: int = 0, **arguments) -> TrainingIterator:
    config = override(Config(model=YolactConfig()), {"train.batch_size": batch_size, "data.workers": workers, "data.max_objects": 5})
    return training_iterator(config, SPEC, dataset=dataset or FakeDataset(), **{"seed": 7, **arguments})


def test_batches_have_the_shapes_of_the_spec():
    batch = next(iterator())
    assert {name: (value.shape, value.dtype.name) for name, value in vars(batch).items() if name != "targets"} == {
        "images": ((4, 32, 32, 3), "uint8"),
        "image_sizes": ((4, 2), "int32"),
        "indices": ((4,), "int32"),
        "valid": ((4,), "bool"),
    }
    assert {name: (value.shape, value.dtype.name) for name, value in vars(batch.targets).items() if value is not None} == {
        "boxes": ((4, 5, 4), "float32"),
        "classes": ((4, 5), "int32"),
        "valid": ((4, 5), "bool"),
        "crowd": ((4, 5), "bool"),
        "masks": ((4, 5, 16, 2), "uint8"),
        "semantic": ((4, 3, 8, 1), "uint8"),
    }
    assert batch.valid.all()
    np.testing.assert_array_equal(batch.image_sizes, [(32, 32)] * 4)


def test_an_image_at_550_pixels_stays_under_its_budget():
    """The budget is 1.3 MB with 100 objects and 80 classes."""
    spec = InputSpec(((550, 550),), (138, 138), (69, 69), 80)
    batch = next(
        training_iterator(override(Config(model=YolactConfig()), {"train.batch_size": 1, "data.workers": 0}), spec, dataset=FakeDataset())
    )
    assert sum(array.nbytes for array in jax.tree.leaves(batch)) <= 1_300_000


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    indices = np.concatenate([batch.indices for batch in take(iterator(batch_size=1), 3 * SIZE)]).reshape(3, SIZE)
    np.testing.assert_array_equal(np.sort(indices), np.tile(np.arange(SIZE), (3, 1)))
    assert not np.array_equal(indices[0], indices[1])
    assert not np.array_equal(indices[1], indices[2])


def test_an_image_is_augmented_anew_in_every_epoch_and_by_every_seed():
    first, second = take(iterator(batch_size=SIZE), 2)
    other = take(iterator(batch_size=SIZE, seed=8), 1)[0]
    assert not np.array_equal(first.indices, other.indices)
    changed = [not np.array_equal(first.images[first.indices == i], second.images[second.indices == i]) for i in range(SIZE)]
    assert sum(changed) > SIZE // 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_state_continues_bit_for_bit(workers):
    """This also holds after conversion to JSON, and with worker processes."""
    reference = take(iterator(workers=0), 9)
    running = iterator(workers=workers)
    assert_equal([jax.tree.map(np.array, next(running)) for _ in range(4)], reference[:4])
    state = json.loads(json.dumps(running.get_state()))
    running.close()
    fresh = iterator(workers=workers)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_equal(take(fresh, 5), reference[4:])


def test_an_iterator_that_has_run_can_be_set_back():
    source = iterator()
    state = source.get_state()
    reference = take(source, 3)
    source.set_state(state)
    assert_equal(take(source, 3), reference)


def test_processes_share_the_batches_of_one():
    """Each process makes its contiguous part of each global batch, also after a restart."""
    reference = take(iterator(), 6)
    parts = [take(iterator(process_index=p, process_count=2), 3) for p in range(2)]
    joined = [jax.tree.map(lambda *rows: np.concatenate(rows), *pieces) for pieces in zip(*parts, strict=True)]
    assert_equal(joined, reference[:3])

    source = iterator()
    for _ in range(3):
        next(source)
    resumed = iterator(process_index=1, process_count=2)
    resumed.set_state(source.get_state())
    assert_equal(take(resumed, 3), [jax.tree.map(lambda rows: rows[2:], batch) for batch in reference[3:]])


def test_the_batch_must_divide_among_the_processes():
    with pytest.raises(ValueError, match=r"config.train.batch_size = 4 is no multiple of the 3 processes"):
        iterator(process_count=3)


def test_a_resumed_run_is_told_of_another_dataset(caplog):
    state = iterator().get_state()
    with caplog.at_level(logging.WARNING, "jaxseg"):
        iterator(FakeDataset(size=5)).set_state(state)
    assert "has 5 images and had 13" in caplog.text


def test_broken_images_are_replaced_always_by_the_same_and_told_once(caplog):
    broken = (1, 4, 8)
    whole = take(iterator(batch_size=SIZE), 3)
    with caplog.at_level(logging.WARNING, "jaxseg"):
        source = iterator(FakeDataset(broken=broken), batch_size=SIZE)
        batches = take(source, 3)
    told = caplog.text
    for batch, original in zip(batches, whole, strict=True):
        assert not np.isin(batch.indices, broken).any()
        kept = ~np.isin(original.indices, broken)
        # The images that are not broken are unchanged.
        np.testing.assert_array_equal(batch.images[kept], original.images[kept])
    assert_equal(take(iterator(FakeDataset(broken=broken), batch_size=SIZE), 3), batches)
    assert sorted(source.broken_images) == list(broken)
    assert told.count("101.png cannot be read: on purpose.") == 1


def test_a_dataset_of_broken_images_ends_the_training_with_one_sentence():
    with pytest.raises(DataError, match=r"None of 100 images in a row can be used; the last one: 10\d.png cannot be read"):
        next(iterator(FakeDataset(broken=tuple(range(SIZE)))))


def test_objects_without_a_row_are_counted(caplog):
    with caplog.at_level(logging.WARNING, "jaxseg"):
        source = iterator(FakeDataset(objects=8), batch_size=SIZE)
        batches = take(source, 4)
    assert all(batch.targets.valid.sum(axis=1).max() == 5 for batch in batches)
    assert max(source.overfull_images.values()) == 3
    assert caplog.text.count("data.max_objects = 5; the smallest are left out") == len(source.overfull_images)


def test_images_without_objects_make_empty_targets():
    batch = next(iterator(FakeDataset(objects=0)))
    assert not batch.targets.valid.any()
    assert not batch.targets.masks.any()
    assert not batch.targets.semantic.any()


def test_evaluation_shows_every_image_once_whole_and_in_order():
    dataset = FakeDataset()
    batches = list(evaluation_batches(dataset, SPEC, batch_size=5, max_objects=4))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, -1, -1]]
    assert batches[2].valid.tolist() == [True, True, True, False, False]
    assert not batches[2].targets.valid[3:].any()
    assert batches[0].images.dtype == np.float32
    sample, view = dataset[7], view_rule(SPEC).whole(dataset[7].picture_size)
    np.testing.assert_array_equal(batches[1].images[2], view.evaluation_image(sample.image))
    assert_equal([jax.tree.map(lambda rows: rows[2], batches[1].targets)], [to_targets(sample, view, SPEC, 4)])


def test_evaluation_gives_each_process_its_share_in_as_many_batches():
    parts = [list(evaluation_batches(FakeDataset(), SPEC, batch_size=2, max_objects=4, process_index=p, process_count=3)) for p in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    seen = np.concatenate([batch.indices[batch.valid] for part in parts for batch in part])
    np.testing.assert_array_equal(np.sort(seen), np.arange(SIZE))


def test_evaluation_of_some_images_leaves_out_broken_ones(caplog):
    with caplog.at_level(logging.WARNING, "jaxseg"):
        (batch,) = evaluation_batches(FakeDataset(broken=(4,)), SPEC, batch_size=3, max_objects=4, indices=[9, 4, 2])
    assert batch.indices.tolist() == [9, 2, -1]
    assert batch.valid.tolist() == [True, True, False]
    assert "104.png cannot be read: on purpose." in caplog.text


def test_real_images_with_masks_and_crowds(coco_mini):
    """Every mask lies in its box, apart from the few pixels that the two resizes can add."""
    config = override(Config(model=YolactConfig()), {"data.root": str(coco_mini), "data.workers": 0, "train.batch_size": 7})
    spec = InputSpec(((550, 550),), (138, 138), (69, 69), 80)
    crowds = 0
    for batch in take(training_iterator(config, spec), 28):
        crowds += int(batch.targets.crowd.sum())
        for row, index in np.argwhere(batch.targets.valid & ~batch.targets.crowd):
            y, x = np.nonzero(np.unpackbits(batch.targets.masks[row, index], axis=-1)[:, :138])
            x1, y1, x2, y2 = batch.targets.boxes[row, index] * 138 / 550
            assert (x >= x1 - 2).all()
            assert (x <= x2 + 2).all()
            assert (y >= y1 - 2).all()
            assert (y <= y2 + 2).all()
    assert crowds > 0
