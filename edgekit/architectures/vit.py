"""ViT. Dosovitskiy et al. 2020, arXiv 2010.11929."""

from edgekit.architectures import Architecture
from edgekit.architectures.blocks import PixelForward

ARCHITECTURE = Architecture(forward=PixelForward)
