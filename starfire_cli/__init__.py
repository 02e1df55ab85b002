"""starfire: train structurally sparse convolutional networks, and work with the checkpoints."""

from starfire_cli.api import load, load_model, sparsify, warmup
from starfire_cli.version import __version__

__all__ = ["__version__", "load", "load_model", "sparsify", "warmup"]
