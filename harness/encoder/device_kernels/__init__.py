"""Operations that a kind of device has a fast kernel for, and whether it has: attention on CUDA, linear layers on a CPU."""
