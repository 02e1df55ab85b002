"""The convolution methods, one a file."""
