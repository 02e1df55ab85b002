"""What the masks' Triton kernels are made of."""
