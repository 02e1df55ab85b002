"""What the masks' fast kernels on a CPU are made of."""
