"""Training steps that compute with live weights only, on a CPU."""

from starfire_cli.sparse.training.network import SparseTraining

__all__ = ["SparseTraining"]
