"""MobileNetV2. Sandler et al. 2018, arXiv 1801.04381."""

from edgekit.architectures import Architecture
from edgekit.architectures.blocks import PixelForward

ARCHITECTURE = Architecture(forward=PixelForward)
