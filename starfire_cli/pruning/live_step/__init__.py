"""Optimizer steps of live weights alone, on packed state: numpy and numba, the same to the bit."""

from starfire_cli.pruning.live_step.piece import LivePiece
from starfire_cli.pruning.live_step.rules import AdamRule, Rule, SGDRule, new_state, rule_of, state_names
from starfire_cli.pruning.live_step.steps import take_steps

__all__ = ["AdamRule", "LivePiece", "Rule", "SGDRule", "new_state", "rule_of", "state_names", "take_steps"]
