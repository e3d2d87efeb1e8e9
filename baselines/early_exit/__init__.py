"""Methods that stop at a layer which they choose for each sample."""
