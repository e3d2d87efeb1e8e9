"""Controls on the weights of a predictor: what predicting must beat."""
