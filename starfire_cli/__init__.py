"""starfire: train structurally sparse convolutional networks, and work with the checkpoints."""

__version__ = "0.1.0"
