"""What changes a model: each step takes a model and returns a new one."""
