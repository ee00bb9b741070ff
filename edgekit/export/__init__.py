"""What writes a file: a model in, one file in one format out."""
