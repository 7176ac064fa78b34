"""Images grouped by the size of their input, and the order in which the groups take turns.

A batch is of one group. Each group is an endless shuffled stream of its own. A schedule, again a
function of the seed alone, says which group makes the `k`-th global batch, and which part of its
stream: any batch is found without counting up to it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Self

import grain
import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from jaxseg.data.sources.dataset import InstanceDataset
from jaxseg.data.views.view import ViewRule

# Endless enough; Grain's own endless stream is longer than slices of it can say.
EPOCHS = 2**32


@dataclasses.dataclass(frozen=True)
class InputGroups:
    """The images of a dataset by the size of their input.

    Attributes:
        input_sizes: heights and widths of the input that some image needs, in the order of
            `InputSpec.input_sizes`.
        members: the images of each, in their old order.
        groups: the group of each image of the dataset, -1 where it is in none.
    """

    input_sizes: tuple[tuple[int, int], ...]
    members: tuple[Int64[ndarray, "n"], ...]
    groups: Int64[ndarray, "images"]

    @classmethod
    def of(cls, dataset: InstanceDataset, rule: ViewRule, indices: Sequence[int] | None = None) -> Self:
        """Groups the images `indices` (None: all) without opening them."""
        wanted = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
        known = rule.spec.input_sizes
        # Datasets have few sizes of pictures, and many images of each.
        sizes, which = np.unique(np.asarray(dataset.picture_sizes)[wanted], axis=0, return_inverse=True)
        input_of_size = [known.index(rule.input_size((height, width))) for height, width in sizes.tolist()]
        input_of_image = np.array(input_of_size, np.int64)[which.ravel()]
        present = np.unique(input_of_image)
        members = tuple(wanted[input_of_image == number] for number in present)
        groups = np.full(len(dataset), -1)
        for group, images in enumerate(members):
            groups[images] = group
        return cls(tuple(known[number] for number in present), members, groups)

    def alike(self, index: int) -> Int64[ndarray, "n"]:
        """All images whose input has the size of this one's."""
        return self.members[self.groups[index]]

    def by_input_size(self) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Each size of input with its images."""
        return zip(self.input_sizes, (images.tolist() for images in self.members), strict=True)


class _Seeded(grain.transforms.RandomMap):
    """Gives each position of a stream a seed for all that chance decides there."""

    def random_map(self, element: int, rng: np.random.Generator) -> Int64[ndarray, "2"]:
        return np.array([element, rng.integers(np.iinfo(np.int64).max)], np.int64)


def shuffled_slots(count: int, seed: int) -> grain.MapDataset:
    """An endless stream of pairs of a number below `count` and a seed.

    Each time round the numbers come in a new order.
    """
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat(EPOCHS).random_map(_Seeded())


@functools.lru_cache(maxsize=2)
def batch_order(counts: tuple[int, ...], seed: int, period: int) -> Int64[ndarray, "batches"]:
    """The order in which groups of so many images take turns, in one period.

    A period has as many batches as there are images, and a group has as many of them as it has
    images, so every image is seen equally often. They are spread evenly, each at a random place of
    its own stretch, so that one epoch differs from the next by a batch or two.

    Returns:
        Numbers below `sum(counts)`: the batches of the first group, then those of the second.
    """
    rng = np.random.default_rng((seed, period))
    places = [(np.arange(count) + rng.random(count)) / count for count in counts]
    return np.argsort(np.concatenate(places), kind="stable")


class InputStreams:
    """Global batches of images of one group each."""

    def __init__(self, members: Sequence[Int64[ndarray, "n"]], seed: int):
        """`members` are the images of each group; `seed` decides everything."""
        self._members = members
        self._seed = seed
        self._counts = tuple(len(images) for images in members)
        self._first = np.cumsum((0, *self._counts))
        # Seeds of their own, lest the same position of two groups draws the same augmentation.
        seeds = np.random.default_rng(seed).integers(2**31, size=len(members)).tolist()
        self._streams = [shuffled_slots(count, own) for count, own in zip(self._counts, seeds, strict=True)]

    def batch(self, number: int, batch_size: int, part: slice) -> Int64[ndarray, "b 2"]:
        """The (image, seed) pairs of rows `part` of a global batch, which has `batch_size`."""
        period, turn = divmod(number, sum(self._counts))
        place = int(batch_order(self._counts, self._seed, period)[turn])
        group = int(np.searchsorted(self._first, place, side="right")) - 1
        batches_before = period * self._counts[group] + place - int(self._first[group])
        stream = self._streams[group]
        slots = np.stack([stream[batches_before * batch_size + row] for row in range(part.start, part.stop)])
        return np.stack([self._members[group][slots[:, 0]], slots[:, 1]], axis=1)

    def batches(self, batch_size: int, part: slice) -> grain.MapDataset:
        """`batch` of every number, without end."""
        return grain.MapDataset.range(EPOCHS).map(lambda number: self.batch(number, batch_size, part))
