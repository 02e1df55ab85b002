"""Registry of attacks, and the interfaces that measuring (`sweep`) and training (`adversary`) use."""

from starfire_cli.attacks._family import ATTACKS, Adversarial, Attack, with_options
from starfire_cli.attacks._sizes import Size, parse_sizes
from starfire_cli.attacks._training import Adversary, adversary

__all__ = [
    "ATTACKS",
    "Adversarial",
    "Adversary",
    "Attack",
    "Size",
    "adversary",
    "parse_sizes",
    "with_options",
]
