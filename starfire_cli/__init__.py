"""starfire: train structurally sparse convolutional networks, and work with the checkpoints."""

from starfire_cli.api import attach, attack, compress, inspect, load, load_model, plot, save, sparsify, warmup
from starfire_cli.version import __version__

__all__ = [
    "__version__",
    "attach",
    "attack",
    "compress",
    "inspect",
    "load",
    "load_model",
    "plot",
    "save",
    "sparsify",
    "warmup",
]
