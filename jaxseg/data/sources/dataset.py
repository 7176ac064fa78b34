"""The interface of every dataset, `InstanceDataset`, and the `Sample` that it returns."""

import abc
import dataclasses
import logging
from typing import Any, SupportsIndex

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8
from numpy import ndarray
from pycocotools import mask as coco_mask

from jaxseg.errors import UserError
from jaxseg.memory import require_memory

# The largest fraction of the machine's memory that the masks of one image may take.
_MASKS_SHARE = 0.25

logger = logging.getLogger("jaxseg")

# The polygons of one object; None if its mask is annotated in another way.
ObjectPolygons = list[list[float]] | None


class DataError(UserError):
    """A dataset or one of its files cannot be used; the message names the file and the reason."""


@dataclasses.dataclass
class Sample:
    """One image with its objects, at the image's own size.

    Attributes:
        image: the image in RGB, 0..255.
        boxes: `x1, y1, x2, y2` in pixels of the image, as annotated; they may reach a little
            outside.
        classes: 0 .. C-1, in ascending order of the category id.
        crowd: whether the object is a crowd region.
        masks: 0 or 1; None if the dataset was opened without masks.
        index: the image's index in the dataset.
        polygons: the polygons of each object, each `x, y, x, y, ...` in pixels of the image; None
            for an object whose mask is annotated in another way, or for all if none has any.
    """

    image: UInt8[ndarray, "H W 3"]
    boxes: Float32[ndarray, "n 4"]
    classes: Int32[ndarray, "n"]
    crowd: Bool[ndarray, "n"]
    masks: UInt8[ndarray, "n H W"] | None
    index: int
    polygons: list[ObjectPolygons] | None = None

    @property
    def picture_size(self) -> tuple[int, int]:
        """The height and width of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclasses.dataclass
class Objects:
    """The annotations of one image, before anything is decoded.

    Attributes:
        boxes: `x, y, width, height` in pixels of the image, as in the file.
        classes: 0 .. C-1.
        crowd: whether the object is a crowd region.
        areas: in square pixels, as in the file; COCO's metrics by size depend on them.
        rles: compressed run lengths in COCO's form, `{"size": [h, w], "counts": bytes}`; None if
            the dataset was opened without masks.
        polygons: see `Sample`.
    """

    boxes: Float64[ndarray, "n 4"]
    classes: Int32[ndarray, "n"]
    crowd: Bool[ndarray, "n"]
    areas: Float64[ndarray, "n"]
    rles: list[dict[str, Any]] | None
    polygons: list[ObjectPolygons] | None = None

    @property
    def corners(self) -> Float64[ndarray, "n 4"]:
        """The boxes as `x1, y1, x2, y2` in pixels of the image."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)


class InstanceDataset(abc.ABC):
    """Images with boxes and, if it was opened with them, masks.

    Images are decoded when they are needed, and the dataset is cheap to pickle for worker
    processes.

    Attributes:
        image_ids: the dataset's own id of each image.
        file_names: the path of each image, relative to the image folder.
        picture_sizes: the height and width of each image.
        object_counts: the number of annotations of each image, crowd regions included.
        category_ids: the dataset's category ids in ascending order; class `k` is `category_ids[k]`.
        class_names: the name of each class.
        has_masks: whether the objects have masks.
        left_out: the number of images without objects that are left out.
        skipped: the number of bad images or annotations that are left out, by the reason.
    """

    image_ids: list[int]
    file_names: list[str]
    picture_sizes: Int32[ndarray, "len 2"]
    object_counts: Int64[ndarray, "len"]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    has_masks: bool = True
    left_out: int
    skipped: dict[str, int]

    @abc.abstractmethod
    def objects(self, index: int) -> Objects:
        """Returns the annotations of image `index` without decoding it."""

    @abc.abstractmethod
    def encoded_image(self, index: int) -> bytes:
        """Returns the bytes of the file of image `index`.

        Raises:
            DataError: the file cannot be read.
        """

    def record(self, index: int) -> tuple[bytes, Objects]:
        """Returns the bytes and the annotations of image `index`.

        Datasets that store both together override this.
        """
        return self.encoded_image(index), self.objects(index)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Returns image `index` and its objects, decoded.

        Raises:
            DataError: the image file is missing, damaged, or not of the size that its annotations
                state, or its masks do not fit into memory.
            IndexError: there is no image `index`.
        """
        position = int(index)
        if not 0 <= position < len(self):
            raise IndexError(f"image {position} of a dataset of {len(self)}")
        encoded, objects = self.record(position)
        if objects.rles is not None:
            require_mask_memory(len(objects.rles), self._size(position), self.file_names[position])
        return Sample(
            image=decode_image(encoded, self._size(position), self.file_names[position]),
            boxes=objects.corners.astype(np.float32),
            classes=objects.classes,
            crowd=objects.crowd,
            masks=None if objects.rles is None else decode_masks(objects.rles, self._size(position)),
            index=position,
            polygons=objects.polygons,
        )

    def image(self, index: int) -> UInt8[ndarray, "H W 3"]:
        """Returns image `index` in RGB, without its objects.

        Raises:
            DataError: the image file is missing, damaged, or not of the size that its annotations
                state.
        """
        return decode_image(self.encoded_image(index), self._size(index), self.file_names[index])

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self.picture_sizes[index]
        return int(height), int(width)

    def coco_ground_truth(self) -> dict[str, Any]:
        """Returns the dataset in the form of `pycocotools.coco.COCO.dataset`.

        Crowd regions keep their category. Annotations are numbered from 1, because pycocotools
        takes a match with id 0 for no match. They have a `segmentation` if the dataset has masks,
        which the metrics of boxes ignore.
        """
        annotations: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids):
            objects = self.objects(index)
            for row in range(len(objects.boxes)):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[objects.classes[row]],
                    "bbox": objects.boxes[row].tolist(),
                    "area": float(objects.areas[row]),
                    "iscrowd": int(objects.crowd[row]),
                }
                if objects.rles is not None:
                    rle = objects.rles[row]
                    annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
                annotations.append(annotation)
        images = [
            {"id": image_id, "file_name": name, "height": int(size[0]), "width": int(size[1])}
            for image_id, name, size in zip(self.image_ids, self.file_names, self.picture_sizes, strict=True)
        ]
        categories = [{"id": number, "name": name} for number, name in zip(self.category_ids, self.class_names, strict=True)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def decode_image(encoded: bytes, size: tuple[int, int], name: str) -> UInt8[ndarray, "H W 3"]:
    """Decodes an image to RGB.

    Grey, palette and CMYK images are converted to RGB, 16 bits are reduced to the upper 8, and an
    alpha channel is dropped. The orientation in EXIF is applied, as by `cv2.imread` in YOLACT's
    original, unless only the stored pixels have the annotated size.

    Args:
        encoded: the bytes of the file, in any format that OpenCV reads.
        size: the height and width that the annotations state.
        name: the name of the file, for messages.

    Raises:
        DataError: the file is damaged, truncated, not an image, or of another size.
    """
    image = _decode(encoded, cv2.IMREAD_COLOR_RGB)
    if image is not None and image.shape[:2] != size:
        stored = _decode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        image = stored if stored is not None and stored.shape[:2] == size else image
    if image is None:
        raise DataError(f"{name} is broken or no image: OpenCV cannot decode its {len(encoded)} bytes.")
    if image.shape[:2] != size:
        raise DataError(
            f"{name} has {image.shape[1]} x {image.shape[0]} pixels, but its annotations are for {size[1]} x {size[0]} (width x height)."
        )
    return image


def _decode(encoded: bytes, flags: int) -> ndarray | None:
    if not encoded:
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    # OpenCV raises this for an image of too many pixels, for example.
    except cv2.error:
        return None


def require_mask_memory(count: int, size: tuple[int, int], name: str) -> None:
    """Raises DataError if the masks of an image would take more than a quarter of the memory.

    Args:
        count: the number of masks.
        size: the height and width of each.
        name: the name of the image file.
    """
    height, width = size
    what = f"{name} has {count} objects in {width} x {height} pixels (width x height), whose masks"
    remedy = "use a smaller picture, or pieces of it"
    require_memory(count * height * width, what, remedy, error=DataError, share=_MASKS_SHARE)


def decode_masks(rles: list[dict[str, Any]], size: tuple[int, int]) -> UInt8[ndarray, "n H W"]:
    """Decodes run lengths to contiguous masks of 0 and 1.

    Args:
        rles: compressed run lengths.
        size: the height and width of the image.
    """
    masks = np.empty((len(rles), *size), np.uint8)
    for mask, rle in zip(masks, rles, strict=True):
        # Run lengths go down the columns, so the decoded bytes are the transposed mask; OpenCV
        # transposes it fastest.
        cv2.transpose(coco_mask.decode(rle).T, mask)
    return masks


class FirstImages(InstanceDataset):
    """The first images of another dataset."""

    def __init__(self, dataset: InstanceDataset, count: int):
        self._dataset = dataset
        self.image_ids, self.file_names = dataset.image_ids[:count], dataset.file_names[:count]
        self.picture_sizes, self.object_counts = dataset.picture_sizes[:count], dataset.object_counts[:count]
        self.category_ids, self.class_names = dataset.category_ids, dataset.class_names
        self.has_masks, self.left_out, self.skipped = dataset.has_masks, dataset.left_out, dataset.skipped

    def objects(self, index: int) -> Objects:
        return self._dataset.objects(index)

    def encoded_image(self, index: int) -> bytes:
        return self._dataset.encoded_image(index)

    def record(self, index: int) -> tuple[bytes, Objects]:
        return self._dataset.record(index)
