"""Operations with fast kernels on some devices, and checks whether a device has them: attention, and linear layers on a CPU."""
