"""The names in torchvision's ResNet classifiers and in the ImageNet files of dbolya/yolact.

The latter have the same names; they are `resnet50-19c8e357.pth`, torchvision's own file, and
`resnet101_reducedfc.pth`. They were trained with our mean and standard deviation of the pixels, to
within half a grey level.
"""

import re

from jaxseg.models import BackboneModelConfig
from jaxseg.weights.names import resnet as names_resnet
from jaxseg.weights.names.rules import NameTable

# The classifier, and the counters of batch norms.
UNNEEDED = re.compile(r"^fc\.|\.num_batches_tracked$")

RESNET = NameTable(
    "a ResNet of torchvision",
    BackboneModelConfig,
    names_resnet.TORCHVISION.modules,
    part="backbone",
    zeros=names_resnet.DEFORMABLE_BIAS,
    unneeded=UNNEEDED,
    agreements={"backbone.stride_in_1x1": False},
)
