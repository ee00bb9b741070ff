"""edgekit: a fine-tuned model in, the smallest verified file for a device out."""

__version__ = "0.1.0"
