"""Training steps that compute with live weights only, on a CPU."""
