"""The list of known kinds of files, and the choice of one for a source or a configuration.

A detector of your own adds its kind of file with `register_names`.
"""

from collections.abc import Iterable

from jaxseg.config import ModelConfig
from jaxseg.weights.names import caffe2 as names_caffe2
from jaxseg.weights.names import rcnn as names_rcnn
from jaxseg.weights.names import retinanet as names_retinanet
from jaxseg.weights.names import torchvision as names_torchvision
from jaxseg.weights.names import yolact as names_yolact
from jaxseg.weights.names.rules import NameTable

OURS = NameTable("jaxseg's own variables", ModelConfig, None)
DETECTORS = [
    names_yolact.DETECTOR,
    names_rcnn.TORCHVISION,
    names_rcnn.DETECTRON2,
    names_rcnn.MMDETECTION,
    names_rcnn.MASKRCNN_BENCHMARK,
    names_retinanet.MASKRCNN_BENCHMARK,
    names_caffe2.DETECTRON,
]
BACKBONES = (names_yolact.DARKNET53, names_torchvision.RESNET, names_caffe2.MSRA)


def register_names(table: NameTable) -> None:
    """Adds a kind of file that holds whole detectors.

    It replaces a table with the same title and models.
    """
    others = [known for known in DETECTORS if (known.title, known.models) != (table.title, table.models)]
    DETECTORS[:] = [*others, table]


def recognise(entries: Iterable[str], config: ModelConfig, paths: Iterable[str]) -> NameTable:
    """Finds the table that has the most names in common with a source.

    Args:
        entries: the names in the source.
        config: the model's configuration.
        paths: our paths of the model's variables.

    Returns:
        The table; if none has a name in common, that of the model's original or our own.
    """
    entries, paths = list(entries), list(paths)

    def common(table: NameTable) -> int:
        return len({table.current_name(name) for name in entries} & set(table.names(config, paths).values()))

    # Backbones come first, because the names in MSRA's files also occur in Detectron's detectors.
    best = max((*BACKBONES, *DETECTORS, OURS), key=common)
    return best if common(best) else original(config) or OURS


def original(config: ModelConfig) -> NameTable | None:
    """Returns the table of the original that is equivalent to a configuration, or None."""
    return next((table for table in DETECTORS if table.describes(config) and not table.disagreements(config)), None)
