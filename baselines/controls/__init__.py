"""Controls and the bound, on GEEP's weights: what a predictor of exits has to beat. May import the harness only."""
