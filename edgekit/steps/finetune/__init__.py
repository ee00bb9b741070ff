"""Learning from labels and from plain text, and what a small change of a base is kept as."""
