"""Steps that store a matrix as a product of smaller ones, or one layer for several."""
