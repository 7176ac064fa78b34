"""All the kinds of files that are known, and which of them a source or a configuration belongs to."""

from collections.abc import Iterable

from jaxseg.config import ModelConfig
from jaxseg.weights.names import caffe2 as names_caffe2
from jaxseg.weights.names import rcnn as names_rcnn
from jaxseg.weights.names import torchvision as names_torchvision
from jaxseg.weights.names import yolact as names_yolact
from jaxseg.weights.names.rules import Origin

OURS = Origin("jaxseg's own variables", None)
DETECTORS = (
    names_yolact.DETECTOR,
    names_rcnn.TORCHVISION,
    names_rcnn.DETECTRON2,
    names_rcnn.MMDETECTION,
    names_rcnn.MASKRCNN_BENCHMARK,
    names_caffe2.DETECTRON,
)
BACKBONES = (names_yolact.DARKNET53, names_torchvision.RESNET, names_caffe2.MSRA)


def recognise(entries: Iterable[str], config: ModelConfig, paths: Iterable[str]) -> Origin:
    """The origin that has the most names in common with a source; the detectors that the model belongs to, where none has any."""
    entries, paths = list(entries), list(paths)

    def common(origin: Origin) -> int:
        return len({origin.current_name(name) for name in entries} & set(origin.names(config, paths).values()))

    # A Caffe2 ResNet's names are those of Detectron's, too.
    best = max((*BACKBONES, *DETECTORS, OURS), key=common)
    return best if common(best) else original(config) or OURS


def original(config: ModelConfig) -> Origin | None:
    """Whose detectors detect as a configuration describes; None where nobody's do."""
    return next((origin for origin in DETECTORS if origin.describes(config) and not origin.disagreements(config)), None)
