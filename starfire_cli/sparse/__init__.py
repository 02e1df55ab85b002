"""Execution of sparse networks on a CPU, faster than the dense ones."""

from starfire_cli.sparse.compiler import missing
from starfire_cli.sparse.network import SparseNetwork, sparsify
from starfire_cli.sparse.rivals import NetworkEngine, Rivals

__all__ = ["NetworkEngine", "Rivals", "SparseNetwork", "missing", "sparsify"]
