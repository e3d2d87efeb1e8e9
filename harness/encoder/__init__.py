"""What a model is: shapes, weights, layers, exit heads, backbones. May import core, kernels and data."""
