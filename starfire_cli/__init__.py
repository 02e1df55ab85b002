"""starfire: train structurally sparse convolutional networks, and work with the checkpoints."""

from starfire_cli.api import attach, load, load_model, save, sparsify, warmup
from starfire_cli.version import __version__

__all__ = ["__version__", "attach", "load", "load_model", "save", "sparsify", "warmup"]
