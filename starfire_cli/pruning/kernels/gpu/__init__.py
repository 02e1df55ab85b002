"""Parts of the mask kernels for CUDA, in Triton."""
