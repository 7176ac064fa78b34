"""torchvision's ResNet classifiers beside our backbone, and dbolya/yolact's ImageNet files, which have the same names.

Blocks are named as in dbolya/yolact, stages `layer1` to `layer4`. Those files are `resnet50-19c8e357.pth`, torchvision's own, and
`resnet101_reducedfc.pth`. The mean and the deviation of the pixels that they learned with are ours, within half a grey level.
"""

import re
from collections.abc import Iterator

from jaxseg.config import YolactConfig
from jaxseg.weights.names_yolact import resnet_modules
from jaxseg.weights.origin import Origin

# The classifier, and counters of batch norm.
UNNEEDED = re.compile(r"^fc\.|\.num_batches_tracked$")


def modules(config: YolactConfig) -> Iterator[tuple[str, str]]:
    """Pairs of our module path and torchvision's, for every module that holds parameters."""
    if config.backbone.name == "resnet":
        yield from resnet_modules(config, "layer{}", 1)


RESNET = Origin("a ResNet of torchvision", modules, part="backbone", unneeded=UNNEEDED)
