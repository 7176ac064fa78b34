"""The TFDS dataset `coco_instances`: a COCO dataset as shards.

The shards are in the format array_record, which is fast to read over a network and does not need
TensorFlow.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.config import Config
from jaxseg.data.sources.coco.categories import distinct_names, joined
from jaxseg.data.sources.coco.files import CocoDataset, Split, open_coco_files, resolve_root
from jaxseg.data.sources.dataset import DataError, InstanceDataset, Objects

SPLITS: tuple[Split, ...] = ("train", "val")


class CocoInstances(tfds.core.GeneratorBasedBuilder):
    """The builder of the shards: images as the bytes of their files, with their objects.

    Masks are stored as run lengths if the datasets have masks. Records are in the order of the JSON
    file, and include images without objects, so that a reader can choose.
    """

    name = "coco_instances"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "COCO instance files, one record an image."}  # noqa: RUF012

    def __init__(self, *, datasets: Mapping[str, CocoDataset], **options: Any):
        """Takes a dataset, opened with `keep_empty`, for each split, and options of TFDS."""
        self._datasets = datasets
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._datasets.values()))
        objects = {
            "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float64, doc="x, y, width, height in pixels"),
            "label": tfds.features.ClassLabel(num_classes=len(first.class_names)),
            "is_crowd": np.bool_,
            "area": np.float64,
        }
        if first.has_masks:
            objects["rle"] = tfds.features.Text(doc="the mask's compressed run lengths, in COCO's form")
            objects["polygons"] = tfds.features.Text(doc="the mask's polygons as JSON; null if it was annotated in another way")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images and instances of COCO files.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(doc="the file's own bytes"),
                    "image_id": np.int64,
                    "file_name": tfds.features.Text(),
                    "objects": tfds.features.Sequence(objects),
                }
            ),
            # With the metadata beside the shards, opening the dataset reads no image.
            metadata=tfds.core.MetadataDict(
                category_ids=list(first.category_ids),
                class_names=list(first.class_names),
                has_masks=first.has_masks,
                splits={name: _catalogue(dataset) for name, dataset in self._datasets.items()},
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {name: self._generate_examples(dataset) for name, dataset in self._datasets.items()}

    def _generate_examples(self, dataset: CocoDataset) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(dataset)):
            encoded, objects = dataset.record(index)
            rows: list[dict[str, Any]] = [
                {"bbox": box, "label": int(label), "is_crowd": bool(crowd), "area": float(area)}
                for box, label, crowd, area in zip(objects.boxes, objects.classes, objects.crowd, objects.areas, strict=True)
            ]
            if objects.rles is not None:
                polygons = objects.polygons or [None] * len(rows)
                rows = [
                    {**row, "rle": rle["counts"].decode("ascii"), "polygons": json.dumps(own)}
                    for row, rle, own in zip(rows, objects.rles, polygons, strict=True)
                ]
            yield (
                index,
                {
                    "image": encoded,
                    "image_id": dataset.image_ids[index],
                    "file_name": dataset.file_names[index],
                    "objects": rows,
                },
            )


def _catalogue(dataset: CocoDataset) -> dict[str, Any]:
    return {
        "image_ids": dataset.image_ids,
        "file_names": dataset.file_names,
        "image_sizes": dataset.picture_sizes.tolist(),
        "object_counts": dataset.object_counts.tolist(),
    }


class TfdsDataset(InstanceDataset):
    """The shards of `CocoInstances`, whose samples are exactly those of the COCO files."""

    def __init__(self, folder: str | Path, split: str, *, keep_empty: bool = False, masks: bool = True):
        """Opens a split: reads its catalogue, but no record.

        Args:
            folder: the `data_dir` of the builder.
            split: "train" or "val".
            keep_empty: whether to keep images without objects, which YOLACT's original leaves out.
            masks: whether masks are needed.

        Raises:
            DataError: there are no such shards, or they have no masks.
        """
        where = Path(folder) / CocoInstances.name / str(CocoInstances.VERSION)
        if not where.is_dir():
            raise DataError(
                f"There are no shards at {where.absolute()}; write them with python -m jaxseg.commands.write_shards --output {folder}, "
                "or set --config.data.format=coco to read COCO files."
            )
        builder = tfds.builder_from_directory(where)
        catalogue = builder.info.metadata["splits"].get(split)
        if catalogue is None:
            raise DataError(f"{where} has no split {split}, only {', '.join(builder.info.metadata['splits'])}.")
        # Old shards always have masks and do not have this entry.
        if masks and not builder.info.metadata.get("has_masks", True):
            raise DataError(
                f"The shards at {where.absolute()} hold boxes without masks; "
                "a detector with masks needs shards that are written with its own config."
            )
        self.has_masks = masks
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        counts = np.array(catalogue["object_counts"], np.int64)
        self._records = np.flatnonzero(counts > 0) if not keep_empty else np.arange(len(counts))
        self.image_ids = [catalogue["image_ids"][i] for i in self._records]
        self.file_names = [catalogue["file_names"][i] for i in self._records]
        self.picture_sizes = np.array(catalogue["image_sizes"], np.int32)[self._records]
        self.object_counts = counts[self._records]
        self.category_ids = tuple(builder.info.metadata["category_ids"])
        names = dict(zip(self.category_ids, builder.info.metadata["class_names"], strict=True))
        # Old shards may have a name twice.
        self.class_names = tuple(distinct_names(names, where).values())
        self.left_out, self.skipped = len(counts) - len(self._records), {}

    def record(self, index: int) -> tuple[bytes, Objects]:
        """Reads the bytes and the annotations of image `index` together."""
        record = self._source[int(self._records[index])]
        objects = record["objects"]
        size = [int(side) for side in self.picture_sizes[index]]
        return record["image"], Objects(
            boxes=np.asarray(objects["bbox"], np.float64).reshape(-1, 4),
            classes=np.asarray(objects["label"], np.int32),
            crowd=np.asarray(objects["is_crowd"], bool),
            areas=np.asarray(objects["area"], np.float64),
            rles=[{"size": size, "counts": counts} for counts in objects["rle"]] if self.has_masks else None,
            # Old shards do not have this entry.
            polygons=[json.loads(own) for own in objects["polygons"]] if self.has_masks and "polygons" in objects else None,
        )

    def objects(self, index: int) -> Objects:
        """Returns the annotations of image `index` without decoding it."""
        return self.record(index)[1]

    def encoded_image(self, index: int) -> bytes:
        """Returns the bytes of the file of image `index`."""
        return self.record(index)[0]


def open_tfds(config: Config, split: Split) -> TfdsDataset:
    """Opens the shards in `data.root`.

    The validation split keeps images without objects, because COCO's metrics count false
    detections in them.

    Raises:
        DataError: there are no shards, their categories are not those of the configuration, or they
            have no masks for a detector with masks.
    """
    keep_empty = config.data.keep_empty or split == "val"
    dataset = TfdsDataset(resolve_root(config.data), split, keep_empty=keep_empty, masks=config.model.has_masks)
    if config.data.category_ids and (config.data.category_ids, config.data.class_names) != (dataset.category_ids, dataset.class_names):
        raise DataError(
            f"The shards in {resolve_root(config.data)} hold the {len(dataset.category_ids)} classes {joined(dataset.class_names)}, "
            "not those of data.class_names and data.category_ids; "
            f"--config.model.num_classes={len(dataset.category_ids)} reads them from the shards."
        )
    return dataset


def write_shards(config: Config, output: str | Path) -> Path:
    """Writes the COCO files of a configuration as shards.

    Args:
        config: the configuration; the shards have masks if its detector has them.
        output: the folder of all shards.

    Returns:
        The folder of this version's shards, which lies below `output`.

    Raises:
        DataError: the dataset cannot be used, an image file cannot be read, or the shards exist.
    """
    # Images without objects are written, too, so that readers of the shards can choose.
    everything = dataclasses.replace(config, data=dataclasses.replace(config.data, keep_empty=True))
    builder = CocoInstances(datasets={split: open_coco_files(everything, split) for split in SPLITS}, data_dir=str(output))
    if builder.data_path.exists():
        raise DataError(f"{builder.data_path} holds shards already; remove it or choose another --output.")
    builder.download_and_prepare()
    return Path(builder.data_path)
