"""Steps that take parts out of a model: layers, heads, neurons, channels, single weights."""
