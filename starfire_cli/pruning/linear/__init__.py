"""The methods for linear layers, one a file."""
