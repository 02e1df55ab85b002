"""Which attacks there are, and what measuring (`sweep`) and training (`adversary`) ask of one."""

from starfire_cli.attacks._family import ATTACKS, Adversarial, Attack, restricted
from starfire_cli.attacks._training import Adversary, adversary

__all__ = ["ATTACKS", "Adversarial", "Adversary", "Attack", "adversary", "restricted"]
