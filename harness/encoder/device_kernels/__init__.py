"""Operations that a kind of device has fast kernels for, and whether it has: attention, and linear layers on a CPU."""
