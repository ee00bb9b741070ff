"""Fewer bits a weight: the grids that training and every writer share."""
