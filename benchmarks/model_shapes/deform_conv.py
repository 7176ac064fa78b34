"""The deformable convolutions of YOLACT++ and of Faster R-CNN with deformable C3 to C5."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DeformConvShape:
    """A deformable 3x3 convolution with as many output as input channels.

    Attributes:
        name: the model and the stage.
        batch: the number of images.
        size: the height and width of the input.
        channels: the number of channels.
        stride: the stride.
        modulated: whether the samples have factors (version 2).
    """

    name: str
    batch: int
    size: tuple[int, int]
    channels: int
    stride: int = 1
    modulated: bool = True

    @property
    def output_size(self) -> tuple[int, int]:
        """Returns the height and width of the result."""
        height, width = ((side - 1) // self.stride + 1 for side in self.size)
        return height, width


DEFORM_CONV_SHAPES = (
    DeformConvShape("yolact_c3", 8, (69, 69), 128),
    DeformConvShape("yolact_c4", 8, (35, 35), 256),
    DeformConvShape("yolact_c5", 8, (18, 18), 512),
    DeformConvShape("yolact_c3_stride", 8, (138, 138), 128, stride=2),
    DeformConvShape("rcnn_c3", 2, (100, 168), 128, modulated=False),
    DeformConvShape("rcnn_c4", 2, (50, 84), 256, modulated=False),
    DeformConvShape("rcnn_c5", 2, (25, 42), 512, modulated=False),
    DeformConvShape("large", 1, (200, 336), 256),
)
