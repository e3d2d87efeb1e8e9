"""Synthetic workloads for the benchmarks of executors and exit table."""
