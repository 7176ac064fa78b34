"""Batches of one shape: images grouped by the network's input they need, and the order in which the groups take turns.

Each group is an endless shuffled stream of its own. A schedule, again a function of the seed alone, says which group makes the
`k`-th global batch, and which part of its stream: nothing has to be counted up to find any batch.
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
from jaxseg.data.views.resize import batch_shape
from jaxseg.structures import InputSpec

# Endless enough; Grain's own endless stream is longer than slices of it can say.
EPOCHS = 2**32


@dataclasses.dataclass(frozen=True)
class ShapeGroups:
    """The images of a dataset by the shape of their input.

    Attributes:
        shapes: heights and widths of the input that some image needs, in the order of `InputSpec.image_sizes`.
        members: the images of each, in their old order.
        groups: the group of each image of the dataset, -1 where it is in none.
    """

    shapes: tuple[tuple[int, int], ...]
    members: tuple[Int64[ndarray, "n"], ...]
    groups: Int64[ndarray, "images"]

    @classmethod
    def of(cls, dataset: InstanceDataset, spec: InputSpec, indices: Sequence[int] | None = None) -> Self:
        """Groups the images `indices` (None: all); opens none of them."""
        wanted = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
        if len(spec.image_sizes) == 1:
            shape_of_image = np.zeros(len(wanted), np.int64)
        else:
            # Datasets have few sizes, and many images of each.
            sizes, which = np.unique(np.asarray(dataset.image_sizes)[wanted], axis=0, return_inverse=True)
            shape_of_size = [spec.image_sizes.index(batch_shape((height, width), spec)) for height, width in sizes.tolist()]
            shape_of_image = np.array(shape_of_size, np.int64)[which.ravel()]
        present = np.unique(shape_of_image)
        members = tuple(wanted[shape_of_image == shape] for shape in present)
        groups = np.full(len(dataset), -1)
        for group, images in enumerate(members):
            groups[images] = group
        return cls(tuple(spec.image_sizes[shape] for shape in present), members, groups)

    def alike(self, index: int) -> Int64[ndarray, "n"]:
        """All images whose input has the shape of this one's."""
        return self.members[self.groups[index]]

    def by_shape(self) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Each shape with its images."""
        return zip(self.shapes, (images.tolist() for images in self.members), strict=True)


class _Seeded(grain.transforms.RandomMap):
    """Gives each position of a stream a seed for all that chance decides there."""

    def random_map(self, element: int, rng: np.random.Generator) -> Int64[ndarray, "2"]:
        return np.array([element, rng.integers(np.iinfo(np.int64).max)], np.int64)


def shuffled_slots(count: int, seed: int) -> grain.MapDataset:
    """An endless stream of pairs (number below `count`, seed for what chance decides there), in a new order each time round."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat(EPOCHS).random_map(_Seeded())


@functools.lru_cache(maxsize=2)
def batch_order(counts: tuple[int, ...], seed: int, period: int) -> Int64[ndarray, "batches"]:
    """The order in which groups of so many images take turns, in one period of as many batches as there are images.

    A group has as many batches as it has images, so every image is seen equally often, and they are spread evenly, each
    at a random place of its own stretch: an epoch differs by a batch or two from the next.

    Returns:
        Numbers below `sum(counts)`: the batches of the first group, then those of the second.
    """
    rng = np.random.default_rng((seed, period))
    places = [(np.arange(count) + rng.random(count)) / count for count in counts]
    return np.argsort(np.concatenate(places), kind="stable")


class ShapeStreams:
    """Global batches of images of one group each."""

    def __init__(self, members: Sequence[Int64[ndarray, "n"]], seed: int):
        """`members` are the images of each group; `seed` decides on everything."""
        self._members = members
        self._seed = seed
        self._counts = tuple(len(images) for images in members)
        self._first = np.cumsum((0, *self._counts))
        # Streams of their own, lest the same position of two groups draws the same augmentation.
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
