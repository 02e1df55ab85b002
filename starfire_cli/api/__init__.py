"""The Python interface: pruning in anyone's training loop, checkpoints, and what the commands do."""

from starfire_cli.api.checkpoints import load, load_model, sparsify, warmup
from starfire_cli.api.commands import attack, compress, inspect
from starfire_cli.api.drawing import plot
from starfire_cli.api.training import attach, save

__all__ = ["attach", "attack", "compress", "inspect", "load", "load_model", "plot", "save", "sparsify", "warmup"]
