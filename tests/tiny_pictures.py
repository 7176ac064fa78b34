"""A dataset of pictures in memory, and its batches."""

import itertools
import struct
import zlib

import cv2
import jax
import numpy as np
from pycocotools import mask as coco_mask

from jaxseg.data.sources.dataset import DataError, InstanceDataset, Objects
from jaxseg.data.stream.training import TrainingIterator
from jaxseg.structures import Batch

SIZE = 13


class FakeDataset(InstanceDataset):
    """A dataset of small grey pictures with rectangles; the images in `broken` cannot be read."""

    def __init__(self, size: int = SIZE, broken: tuple[int, ...] = (), objects: int = 2):
        self.image_ids = list(range(100, 100 + size))
        self.file_names = [f"{number}.png" for number in self.image_ids]
        self.picture_sizes = np.array([(20 + i, 30) for i in range(size)], np.int32)
        self.object_counts = np.full(size, objects)
        self.category_ids, self.class_names, self.skipped = (1, 2, 3), ("a", "b", "c"), {}
        self.broken, self.objects_each = broken, objects

    def objects(self, index: int) -> Objects:
        height, width = self.picture_sizes[index]
        masks = np.zeros((height, width, self.objects_each), np.uint8, order="F")
        boxes = np.array([(2 + i, 3, 10 + i, 12) for i in range(self.objects_each)], np.float64).reshape(-1, 4)
        for i, (x, y, box_width, box_height) in enumerate(boxes.astype(int)):
            masks[y : y + box_height, x : x + box_width, i] = 1
        return Objects(
            boxes=boxes,
            classes=(np.arange(self.objects_each) % 3).astype(np.int32),
            crowd=np.zeros(self.objects_each, bool),
            areas=boxes[:, 2] * boxes[:, 3],
            rles=coco_mask.encode(masks),
        )

    def encoded_image(self, index: int) -> bytes:
        if index in self.broken:
            raise DataError(f"{self.file_names[index]} cannot be read: on purpose.")
        return cv2.imencode(".png", np.full((*self.picture_sizes[index], 3), index, np.uint8))[1].tobytes()


def take(source: TrainingIterator, count: int) -> list[Batch]:
    """Returns copies of `count` batches, and ends the iterator's processes."""
    batches = [jax.tree.map(np.array, batch) for batch in itertools.islice(source, count)]
    source.close()
    return batches


def assert_equal(batches: list, others: list) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for leaf, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(leaf, expected)


def huge_png(width: int, height: int) -> bytes:
    """Makes a file of a few hundred bytes whose header claims a picture of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
