"""starfire: train structurally sparse convolutional networks, and work with the checkpoints."""

from starfire_cli.api import load, load_model, sparsify, warmup

__all__ = ["__version__", "load", "load_model", "sparsify", "warmup"]
__version__ = "0.1.0"
