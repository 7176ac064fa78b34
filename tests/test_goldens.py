"""The numbers in tests/data, which are a part of the full ones and must stay small."""

import json

import numpy as np
import pytest
from goldens import DATA, Golden, input_picture, load_arrays, load_json
from rebuilt_weights import DIGESTS
from reduce_goldens import digests, pictures, reduced, thinned


def test_reduced_arrays_hold_every_nth_entry_and_say_so():
    array = np.arange(60).reshape(5, 12)
    golden = thinned({"a": array, "b": array, "left_out": array}, {"a": (2, 5), "b": ()})
    assert set(golden) == {"a", "b", "steps/a"}
    np.testing.assert_array_equal(golden["a"], array[::2, ::5])
    np.testing.assert_array_equal(golden.kept(array, "a"), golden["a"])
    np.testing.assert_array_equal(golden.kept(array, "b"), array)


def test_all_data_are_at_most_ten_megabytes():
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert max(sizes) < 1.5e6
    assert sum(sizes) < 10e6


@pytest.mark.slow
def test_reduced_numbers_are_part_of_the_full_ones(golden):
    """The files are those that reduce_goldens.py makes, with digests of the originals' weights."""
    if golden == DATA:
        pytest.skip("wants the originals' full numbers")
    for name, content in reduced(golden):
        if isinstance(content, Golden):
            stored = load_arrays(DATA / name)
            assert set(stored) == set(content), name
            for key, array in content.items():
                np.testing.assert_array_equal(stored[key], array, err_msg=f"{name}: {key}")
        else:
            assert load_json(DATA / name) == content, name
    for name, image in pictures(golden):
        np.testing.assert_array_equal(input_picture(name), image)
    assert json.loads(DIGESTS.read_text()) == digests(golden)
