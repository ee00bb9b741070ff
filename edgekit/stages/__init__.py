"""The stages of a build: each finds its output in the store, or makes it there.

A stage's key holds the keys of what it is made from, never their content, so that a build with
nothing changed loads no model and no runtime. The heavy work is in the rooms that these call.
One file a stage; ``stage.py`` has what they share, and ``pipeline.py`` their order.
"""
