"""The door to the datasets: how a config names them, whichever format they are in."""

import dataclasses

from jaxseg.config import Config, ConfigError
from jaxseg.data.sources.coco.categories import joined
from jaxseg.data.sources.coco.files import CocoDataset, Split, open_coco_files, resolve_root
from jaxseg.data.sources.dataset import DataError, FirstImages, InstanceDataset, Objects, Sample
from jaxseg.data.sources.tfds_coco import open_tfds

__all__ = ["CocoDataset", "DataError", "InstanceDataset", "Objects", "Sample", "Split", "open_dataset", "resolve_classes", "resolve_root"]


def open_dataset(config: Config, split: Split) -> InstanceDataset:
    """The training or validation images of a config, from COCO files or from the shards that `jaxseg.commands.write_shards` wrote.

    Validation keeps images without objects, for COCO's metrics count what a detector sees in them. Objects have masks where
    the config's detector has.

    Raises:
        DataError: something is missing (says where it was looked for and how to get it) or cannot be used.
    """
    open_format = open_coco_files if config.data.format == "coco" else open_tfds
    dataset: InstanceDataset = open_format(config, split)
    return FirstImages(dataset, config.data.limit_images) if config.data.limit_images else dataset


def resolve_classes(config: Config, dataset: InstanceDataset | None = None) -> Config:
    """The config with empty `data.class_names` and `data.category_ids` read from the training annotations.

    Args:
        config: as the user gave it.
        dataset: its training images, where they are open already; opened without category ids they know all there are.

    Raises:
        ConfigError: the dataset has another number of classes than `model.num_classes`.
        DataError: the training annotations cannot be used.
    """
    if config.data.category_ids:
        return config
    dataset = open_dataset(config, "train") if dataset is None else dataset
    found = len(dataset.category_ids)
    if found != config.model.num_classes:
        raise ConfigError(
            f"config.model.num_classes = {config.model.num_classes}, but the training annotations have {found} categories "
            f"({joined(dataset.class_names)}); set --config.model.num_classes={found}."
        )
    data = dataclasses.replace(config.data, class_names=dataset.class_names, category_ids=dataset.category_ids)
    return dataclasses.replace(config, data=data)
