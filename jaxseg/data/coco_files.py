"""A dataset of COCO instance files: one JSON and a folder of images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxseg.config import Config, DataConfig
from jaxseg.data.annotations import Annotations
from jaxseg.data.dataset import DataError, InstanceDataset, Objects, logger
from jaxseg.data.shapes import ensure_shapes

Split = Literal["train", "val"]

_DOWNLOADS = "http://images.cocodataset.org"


class CocoDataset(InstanceDataset):
    """Images and instances in COCO's form: boxes, masks as polygons or run lengths (compressed or not), crowds.

    What is wrong with the file as a whole is refused here. Single bad annotations and missing image files are left out,
    counted in `skipped`, and told once in the log. The ids of annotations are not used, so they may repeat or be missing.
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
        """Opens a dataset; reads the JSON and lists the image folder, opens no image.

        Args:
            annotations: the JSON file.
            images: the folder that its `file_name`s start from.
            category_ids: the categories to use, in ascending order; empty: all the file has.
            class_names: what the file must call them; empty: whatever it calls them.
            keep_empty: keep images without objects; the original leaves them out.
            masks: False: boxes are enough, and `segmentation` is not looked at; True: an object needs it.

        Raises:
            DataError: a file or folder is missing or cannot be used; the message says which and why.
        """
        self._folder = Path(images)
        if not Path(annotations).is_file():
            raise DataError(f"There is no annotation file {annotations}.")
        if not self._folder.is_dir():
            raise DataError(f"There is no image folder {images}, which the images of {annotations} should be in.")
        self._annotations = Annotations(Path(annotations), category_ids, class_names, masks=masks)
        self.has_masks = masks
        self.category_ids, self.class_names = self._annotations.category_ids, self._annotations.class_names
        self.skipped = dict(self._annotations.skipped)

        present = self._present(annotations)
        counts = self._annotations.counts
        self._rows = np.flatnonzero(present if keep_empty else present & (counts > 0))
        if missing := int((~present).sum()):
            example = self._annotations.file_names[int(np.flatnonzero(~present)[0])]
            self.skipped[f"images whose file is missing, for instance {example}"] = missing
        self.left_out = int(present.sum()) - len(self._rows)
        if self.left_out:
            logger.info("%s: %d images without objects are left out.", annotations, self.left_out)
        if self.skipped:
            logger.warning("%s: skipped %s.", annotations, "; ".join(f"{n} {what}" for what, n in self.skipped.items()))
        if not len(self._rows):
            raise DataError(f"{annotations} has no image with a usable annotation; skipped: {self.skipped or 'nothing'}.")
        self.image_ids = [self._annotations.image_ids[i] for i in self._rows]
        self.file_names = [self._annotations.file_names[i] for i in self._rows]
        self.image_sizes, self.object_counts = self._annotations.image_sizes[self._rows], counts[self._rows]

    def _present(self, annotations: str | Path) -> np.ndarray:
        """Which image files exist: one listing a folder, for asking after each file is slow on a network."""
        names = self._annotations.file_names
        listings = {folder: _listing(self._folder / folder) for folder in {os.path.dirname(name) for name in names}}
        present = np.array([os.path.basename(name) in listings[os.path.dirname(name)] for name in names])
        if not present.any():
            raise DataError(f"None of the {len(names)} images of {annotations} is in {self._folder}; the first is {names[0]}.")
        return present

    def objects(self, index: int) -> Objects:
        """The annotations of image `index`; does not open the image."""
        return self._annotations.objects(int(self._rows[index]))

    def encoded_image(self, index: int) -> bytes:
        """The image file's bytes.

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
    except OSError:
        return frozenset()


def resolve_root(data: DataConfig) -> Path:
    """The dataset's folder: `data.root`, else $JAXSEG_DATA, else data/coco."""
    return Path(data.root or os.environ.get("JAXSEG_DATA") or "data/coco").expanduser()


def open_coco_files(config: Config, split: Split) -> CocoDataset:
    """The COCO files that `config.data` names; writes the synthetic shapes first where it asks for them.

    Validation keeps images without objects, for COCO's metrics count what a detector sees in them. Masks are read where the
    config's detector has them.

    Raises:
        DataError: something is missing (says where it was looked for and how to get it) or cannot be used.
    """
    data, root = config.data, resolve_root(config.data)
    if data.synthetic:
        ensure_shapes(root)
    annotations = root / (data.train_annotations if split == "train" else data.val_annotations)
    images = root / (data.train_images if split == "train" else data.val_images)
    for path, field in ((annotations, f"data.{split}_annotations"), (images, f"data.{split}_images")):
        if not path.exists():
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
    """One sentence: where it was looked for, how to get COCO, and the demo that needs no data."""
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
