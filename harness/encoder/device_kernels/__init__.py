"""Fast kernels of some devices, and checks for them: attention on CUDA, linear layers on a CPU."""
