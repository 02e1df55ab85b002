"""The Python interface: pruning in anyone's training loop, checkpoints, and what the commands do."""

from starfire_cli.api.checkpoints import load, load_model, sparsify, warmup
from starfire_cli.api.training import attach, save

__all__ = ["attach", "load", "load_model", "save", "sparsify", "warmup"]
