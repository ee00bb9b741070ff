"""ResNet. He et al. 2015, arXiv 1512.03385."""

from edgekit.architectures import Architecture
from edgekit.architectures.blocks import PixelForward

ARCHITECTURE = Architecture(forward=PixelForward)
