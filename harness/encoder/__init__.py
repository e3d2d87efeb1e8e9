"""The chassis every Transformer method runs on: backbone, layers, exit heads, executors."""
