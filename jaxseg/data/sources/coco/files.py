"""A dataset in COCO's format: a JSON file of annotations and a folder of images."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxseg.config import Config, DataConfig
from jaxseg.data.sources.coco.annotations import Annotations
from jaxseg.data.sources.coco.categories import printable
from jaxseg.data.sources.dataset import DataError, InstanceDataset, Objects, logger
from jaxseg.data.sources.shapes import ensure_shapes
from jaxseg.errors import shortened
from jaxseg.files import is_file_name

Split = Literal["train", "val"]

# The number of folders whose listings are kept in memory.
_LISTINGS = 64

_DOWNLOADS = "http://images.cocodataset.org"


class CocoDataset(InstanceDataset):
    """Images and objects in COCO's format: boxes, crowds, and masks as polygons or run lengths.

    Run lengths may be compressed or not. A file with a general fault is refused. Single bad
    annotations and missing image files are left out, counted in `skipped`, and reported once in the
    log. The ids of annotations only serve to name them there, so they may repeat or be missing.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        category_ids: Sequence[int] = (),
        class_names: Sequence[str] = (),
        keep_empty: bool = False,
        masks: bool = True,
    ):
        """Opens a dataset: reads the JSON file and lists the image folder, but opens no image.

        Args:
            annotations: the JSON file.
            images: the folder that its `file_name`s are relative to.
            category_ids: the categories to use, in ascending order; by default, all in the file.
            class_names: the names that the file must give them; by default, any.
            keep_empty: whether to keep images without objects, which YOLACT's original leaves out.
            masks: whether objects need a `segmentation`; otherwise it is ignored.

        Raises:
            DataError: a file or folder is missing or cannot be used; the message says which and
                why.
        """
        self._folder = Path(images)
        _require(Path(annotations), "annotation file", Path.is_file, "no file")
        _require(self._folder, "image folder", Path.is_dir, "no folder")
        self._annotations = Annotations(Path(annotations), category_ids, class_names, masks=masks)
        self.has_masks = masks
        self.category_ids, self.class_names = self._annotations.category_ids, self._annotations.class_names
        self.skipped = dict(self._annotations.skipped)

        present = self._present(annotations)
        counts = self._annotations.counts
        self._rows = np.flatnonzero(present if keep_empty else present & (counts > 0))
        if missing := int((~present).sum()):
            example = self._annotations.file_names[int(np.flatnonzero(~present)[0])]
            self.skipped[f"images whose file is missing, for instance {printable(example)}"] = missing
        self.left_out = int(present.sum()) - len(self._rows)
        if self.left_out:
            logger.info("%s: %d images without objects are left out.", annotations, self.left_out)
        if self.skipped:
            logger.warning("%s: skipped %s.", annotations, self._describe_skipped())
        if not len(self._rows):
            raise DataError(f"{annotations} has no image with a usable annotation; skipped: {self._describe_skipped() or 'nothing'}.")
        self.image_ids = self._annotations.image_ids[self._rows].tolist()
        self.file_names = [self._annotations.file_names[i] for i in self._rows]
        self.picture_sizes, self.object_counts = self._annotations.picture_sizes[self._rows], counts[self._rows]

    def _describe_skipped(self) -> str:
        """Describes for a message what was skipped, with the first annotation of each kind."""
        first = self._annotations.first_skipped
        return "; ".join(f"{n} {what}" + (f" (the first: {first[what]})" if what in first else "") for what, n in self.skipped.items())

    def _present(self, annotations: str | Path) -> np.ndarray:
        """Returns which image files exist.

        Each folder is listed once, because to look for each file is slow on a network.
        """
        names = self._annotations.file_names
        listing = functools.lru_cache(_LISTINGS)(lambda folder: _listing(self._folder / folder))
        present = np.zeros(len(names), bool)
        # Sorted, so that the names of one folder come together and few listings are kept.
        for i in sorted(range(len(names)), key=names.__getitem__):
            present[i] = os.path.basename(names[i]) in listing(os.path.dirname(names[i]))
        if not present.any():
            raise DataError(f"None of the {len(names)} images of {annotations} is in {self._folder}; the first is {printable(names[0])}.")
        return present

    def objects(self, index: int) -> Objects:
        """Returns the annotations of image `index` without opening it."""
        return self._annotations.objects(int(self._rows[index]))

    def encoded_image(self, index: int) -> bytes:
        """Returns the bytes of the file of image `index`.

        Raises:
            DataError: the file cannot be read.
        """
        path = self._folder / self.file_names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _listing(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except PermissionError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    except OSError:
        return frozenset()


def _exists(path: Path, what: str) -> bool:
    """Whether a file or folder exists.

    Raises:
        DataError: this cannot be known, because of its name or of permissions.
    """
    if not is_file_name(str(path)):
        raise DataError(f"The {what} cannot be {shortened(str(path))}: no file can have a NUL or half of a surrogate pair in its name.")
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"The {what} {printable(str(path))} cannot be read: {error.strerror or error}.") from None


def _require(path: Path, what: str, is_right: Callable[[Path], bool], wrong: str) -> None:
    """Raises DataError unless a path exists and is of the right kind."""
    if not _exists(path, what):
        raise DataError(f"There is no {what} {path}.")
    if not is_right(path):
        raise DataError(f"The {what} cannot be {path}, which is {wrong}.")


def resolve_root(data: DataConfig) -> Path:
    """Returns the dataset's folder: `data.root`, or else $JAXSEG_DATA, or else data/coco.

    Raises:
        DataError: no folder can have this name.
    """
    root = data.root or os.environ.get("JAXSEG_DATA") or "data/coco"
    if not is_file_name(root):
        raise DataError(f"The dataset cannot be in {shortened(root)}: no folder can have a NUL or half of a surrogate pair in its name.")
    try:
        return Path(root).expanduser()
    except RuntimeError:
        raise DataError(f"The dataset cannot be in {shortened(root)}: there is no home folder of this name.") from None


def open_coco_files(config: Config, split: Split) -> CocoDataset:
    """Opens the COCO files that `config.data` names.

    If the configuration asks for the synthetic shapes, they are written first. The validation split
    keeps images without objects, because COCO's metrics count false detections in them. Masks are
    read if the configuration's detector has masks.

    Raises:
        DataError: something is missing (the message says where it is expected and how to get it) or
            cannot be used.
    """
    data, root = config.data, resolve_root(config.data)
    if data.synthetic:
        ensure_shapes(root)
    annotations = root / (data.train_annotations if split == "train" else data.val_annotations)
    images = root / (data.train_images if split == "train" else data.val_images)
    for path, field in ((annotations, f"data.{split}_annotations"), (images, f"data.{split}_images")):
        if not _exists(path, field):
            raise DataError(_missing(path, field, data))
    return CocoDataset(
        annotations,
        images,
        category_ids=data.category_ids,
        class_names=data.class_names,
        keep_empty=data.keep_empty or split == "val",
        masks=config.model.has_masks,
    )


def _missing(path: Path, field: str, data: DataConfig) -> str:
    """Returns a sentence on what is missing, how to get COCO, and the demo that needs no data."""
    default = DataConfig()
    if (data.train_annotations, data.val_annotations) != (default.train_annotations, default.val_annotations):
        return f"There is no {path.absolute()}, which {field} of the config names; set --config.data.root or --config.{field} right."
    return (
        f"There is no {path.absolute()}: set --config.data.root or $JAXSEG_DATA to a folder in COCO's layout "
        f"({default.train_annotations}, {default.val_annotations}, {default.train_images}/, {default.val_images}/), which you get by "
        f"unpacking {_DOWNLOADS}/zips/train2017.zip, {_DOWNLOADS}/zips/val2017.zip and "
        f"{_DOWNLOADS}/annotations/annotations_trainval2017.zip into it, or run the demo, which needs no data: "
        "python train.py --config configs/demo_shapes.py"
    )
