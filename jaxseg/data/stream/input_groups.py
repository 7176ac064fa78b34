"""Images grouped by the size of their input, and the order in which the groups form batches.

All images of a batch belong to one group. Each group is an endless shuffled stream of its own. A
schedule, which depends on nothing but the seed, gives the group and the part of its stream that
form the `k`-th global batch. So any batch can be found without counting up to it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Self

import grain
import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from jaxseg.data.sources.dataset import InstanceDataset
from jaxseg.data.views.view import ViewRule

# This is long enough to count as endless; Grain cannot slice its own endless stream.
EPOCHS = 2**32


@dataclasses.dataclass(frozen=True)
class InputGroups:
    """The images of a dataset, grouped by the size of their input.

    Attributes:
        input_sizes: the height and width of the input of each group, in the order of
            `InputSpec.input_sizes`; sizes that no image needs are left out. Sizes that are not
            listed there come in descending order of their areas.
        members: the indices of the images of each group, in their original order.
        groups: the group of each image of the dataset; -1 for images that are in no group.
    """

    input_sizes: tuple[tuple[int, int], ...]
    members: tuple[Int64[ndarray, "n"], ...]
    groups: Int64[ndarray, "images"]

    @classmethod
    def of(cls, dataset: InstanceDataset, rule: ViewRule, indices: Sequence[int] | None = None) -> Self:
        """Groups the images `indices` without opening them; None groups all images."""
        wanted = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
        # Datasets have few different picture sizes, with many images of each.
        sizes, which = np.unique(np.asarray(dataset.picture_sizes)[wanted], axis=0, return_inverse=True)
        inputs = [rule.input_size((height, width)) for height, width in sizes.tolist()]
        listed = rule.spec.input_sizes
        known = (*listed, *sorted(set(inputs) - set(listed), key=lambda size: (-math.prod(size), size)))
        input_of_size = [known.index(size) for size in inputs]
        input_of_image = np.array(input_of_size, np.int64)[which.ravel()]
        present = np.unique(input_of_image)
        members = tuple(wanted[input_of_image == number] for number in present)
        groups = np.full(len(dataset), -1)
        for group, images in enumerate(members):
            groups[images] = group
        return cls(tuple(known[number] for number in present), members, groups)

    def alike(self, index: int) -> Int64[ndarray, "n"]:
        """Returns all images whose input has the same size as that of this image."""
        return self.members[self.groups[index]]

    def by_input_size(self) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Yields each size of input with its images."""
        return zip(self.input_sizes, (images.tolist() for images in self.members), strict=True)


class _Seeded(grain.transforms.RandomMap):
    """Gives each position of a stream the seed of all its random choices."""

    def random_map(self, element: int, rng: np.random.Generator) -> Int64[ndarray, "2"]:
        return np.array([element, rng.integers(np.iinfo(np.int64).max)], np.int64)


def shuffled_slots(count: int, seed: int) -> grain.MapDataset:
    """Returns an endless stream of pairs of a number below `count` and a seed.

    The numbers come in a new order in each epoch.
    """
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat(EPOCHS).random_map(_Seeded())


@functools.lru_cache(maxsize=2)
def batch_order(counts: tuple[int, ...], seed: int, period: int) -> Int64[ndarray, "batches"]:
    """Returns the order in which groups with `counts` images form the batches of one period.

    A period has as many batches as there are images, and each group forms as many of them as it has
    images, so that every image is seen equally often. The batches of a group are spread evenly,
    each at a random place in its own interval, so that epochs differ by only a batch or two.

    Returns:
        Numbers below `sum(counts)`, which stand for the batches of the first group, then those of
        the second, and so on.
    """
    rng = np.random.default_rng((seed, period))
    places = [(np.arange(count) + rng.random(count)) / count for count in counts]
    return np.argsort(np.concatenate(places), kind="stable")


class InputStreams:
    """The stream of global batches, each with images of one group."""

    def __init__(self, members: Sequence[Int64[ndarray, "n"]], seed: int):
        """Makes the streams.

        Args:
            members: the indices of the images of each group.
            seed: the seed of the order and of the augmentation.
        """
        self._members = members
        self._seed = seed
        self._counts = tuple(len(images) for images in members)
        self._first = np.cumsum((0, *self._counts))
        # Each group has its own seed, so that equal positions do not draw equal augmentations.
        seeds = np.random.default_rng(seed).integers(2**31, size=len(members)).tolist()
        self._streams = [shuffled_slots(count, own) for count, own in zip(self._counts, seeds, strict=True)]

    def batch(self, number: int, batch_size: int, part: slice) -> Int64[ndarray, "b 2"]:
        """Returns the (image, seed) pairs of the rows `part` of a global batch of `batch_size`."""
        period, turn = divmod(number, sum(self._counts))
        place = int(batch_order(self._counts, self._seed, period)[turn])
        group = int(np.searchsorted(self._first, place, side="right")) - 1
        batches_before = period * self._counts[group] + place - int(self._first[group])
        stream = self._streams[group]
        slots = np.stack([stream[batches_before * batch_size + row] for row in range(part.start, part.stop)])
        return np.stack([self._members[group][slots[:, 0]], slots[:, 1]], axis=1)

    def batches(self, batch_size: int, part: slice) -> grain.MapDataset:
        """Returns the endless stream of batches, each as `batch` gives it."""
        return grain.MapDataset.range(EPOCHS).map(lambda number: self.batch(number, batch_size, part))
