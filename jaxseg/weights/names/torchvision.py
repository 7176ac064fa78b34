"""torchvision's ResNet classifiers beside our backbone, and dbolya/yolact's ImageNet files, which have the same names.

Those files are `resnet50-19c8e357.pth`, torchvision's own, and `resnet101_reducedfc.pth`. The mean and the deviation of the pixels
that they learned with are ours, within half a grey level.
"""

import re

from jaxseg.models import BackboneModelConfig
from jaxseg.weights.names import resnet as names_resnet
from jaxseg.weights.names.rules import NameTable

# The classifier, and counters of batch norm.
UNNEEDED = re.compile(r"^fc\.|\.num_batches_tracked$")

RESNET = NameTable(
    "a ResNet of torchvision",
    BackboneModelConfig,
    names_resnet.TORCHVISION.modules,
    part="backbone",
    unneeded=UNNEEDED,
    agreements={"backbone.stride_in_1x1": False},
)
