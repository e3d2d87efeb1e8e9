"""Synthetic workloads for micro-benchmarks."""
