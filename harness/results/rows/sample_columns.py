"""Columns of the per-sample rows of a cell."""

from __future__ import annotations

# Columns of samples/<cell>.parquet, one row per test sample in file order.
SAMPLE_COLUMNS = {
    "index": "int64: row of the test split",
    "length": "int32: tokens, special ones included",
    "label": "int64: gold label",
    "prediction": "int64: predicted label",
    "correct": "bool",
    "confidence": "float32: softmax probability of the prediction",
    "exit_layer": "int16: layer of the exit that answered, 1..depth; 0 before layer 1, or without layers",
    "predicted_exit": "int16: predicted exit layer, 1..depth; 0 without a prediction, -1 before layer 1",
    "difficulty": "int8: true difficulty of embedded samples; -1 for real data",
}

# Further columns, for methods that say what every exit would answer (an oracle). Older results have none.
# Bit i is layer i + 1, and bit 62 what answers before layer 1; bits of layers that cannot answer are 0.
DEPTH_COLUMNS = {
    "right_layers": "int64: bit i is set if layer i + 1 answers and is right",
    "agreeing_layers": "int64: bit i is set if layer i + 1 answers and gives the answer of the last layer",
}
MOST_LAYERS = 62  # whose bits fit into an int64, the sign and BEFORE_BIT apart
BEFORE_BIT = 62
