"""Engines: other ways to run a fitted method, such as int8 or ONNX Runtime. May import what lies below and the toolkit."""
