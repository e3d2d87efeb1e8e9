"""What is measured and how: clock, work and FLOPs, throughput, memory, quality."""
