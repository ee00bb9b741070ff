"""The folder that an app ships, and its proof."""
