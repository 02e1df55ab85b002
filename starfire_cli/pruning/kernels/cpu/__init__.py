"""Parts of the fast mask kernels for CPUs."""
