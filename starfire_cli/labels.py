"""Labels of networks: method and target, or the sparsity of the masks where a run pruned nothing itself."""

from __future__ import annotations

DENSE = "dense"
PRUNED = "pruned"
SHRUNK = "shrunk"


def method_and_share(
    method: str, fc: str, target: float | None, *, sparsity: float, shrunk: bool = False
) -> tuple[str, float | None]:
    """The method that labels a network, and the share of weights that goes with it: 0 for a dense one; None for none.

    A network that nothing was asked of is a dense baseline only if nothing of it is dead: one that was pruned before,
    and then fine-tuned with `--method dense`, is called pruned.

    Args:
        method: spec of the convolutions' method.
        fc: spec of the linear layers'.
        target: the share of weights to prune that was asked for; 0 for nothing, None for a method that has no target.
        sparsity: dead over prunable weights, counted from masks.
        shrunk: whether dead channels were removed for good; the share is then not known.
    """
    if target and not method == fc == DENSE:
        return method, target
    if sparsity:
        return PRUNED, max(round(sparsity, 4), 0.0001)
    return (SHRUNK, None) if shrunk else (DENSE, 0.0)


def title(method: str, share: float | None) -> str:
    """`window 0.6`, `dense`, `shrunk`."""
    return f"{method} {share:g}" if share else method
