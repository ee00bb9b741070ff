"""What a person reads of bundles: one page, or a model card. (``edgekit.report`` is a function.)"""
