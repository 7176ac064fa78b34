"""Opening the datasets that a configuration names, in any format."""

import dataclasses

from jaxseg.config import Config, ConfigError
from jaxseg.data.sources.coco.categories import joined
from jaxseg.data.sources.coco.files import CocoDataset, Split, open_coco_files, resolve_root
from jaxseg.data.sources.dataset import DataError, FirstImages, InstanceDataset, Objects, Sample
from jaxseg.data.sources.tfds_coco import open_tfds

__all__ = ["CocoDataset", "DataError", "InstanceDataset", "Objects", "Sample", "Split", "open_dataset", "resolve_classes", "resolve_root"]


def open_dataset(config: Config, split: Split) -> InstanceDataset:
    """Opens the training or validation images of a configuration.

    They come from COCO files or from the shards of `jaxseg.commands.write_shards`. The validation
    split keeps images without objects, because COCO's metrics count false detections in them.
    Objects have masks if the configuration's detector has masks.

    Raises:
        DataError: something is missing (the message says where it is expected and how to get it) or
            cannot be used.
    """
    open_format = open_coco_files if config.data.format == "coco" else open_tfds
    dataset: InstanceDataset = open_format(config, split)
    return FirstImages(dataset, config.data.limit_images) if config.data.limit_images else dataset


def resolve_classes(config: Config, dataset: InstanceDataset | None = None) -> Config:
    """Fills empty `data.class_names` and `data.category_ids` from the training annotations.

    Args:
        config: the configuration of the user.
        dataset: its training images, if they are already open.

    Returns:
        The configuration with class names and category ids.

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
