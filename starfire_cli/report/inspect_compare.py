"""Display of two checkpoints side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from starfire_cli.records.inspect import Comparison, LayerDifference
from starfire_cli.report.inspect import problems, show_table
from starfire_cli.text import printable, shape_text

_COLUMNS: tuple[tuple[str, bool, int], ...] = (
    ("layer", False, 0),
    ("shape", False, 7),
    ("sparsity A", True, 1),
    ("sparsity B", True, 2),
    ("B - A", True, 6),
    ("IoU", True, 3),
    ("revived", True, 4),
    ("died", True, 5),
)


def show_comparison(console: Console, found: Comparison, layers: Sequence[LayerDifference]) -> None:
    """Shows a table of `layers`, totals of all, and flipped predictions if they were counted."""

    def say(line: str) -> None:
        console.print(Text(printable(line, 2000)))

    say(f"A: {found.a.path}  sparsity {found.a.sparsity_prunable:.4f}")
    say(f"B: {found.b.path}  sparsity {found.b.sparsity_prunable:.4f}")
    if layers:
        rows = [
            [
                printable(x.name, 80),
                shape_text(x.shape),
                f"{x.sparsity_a:.4f}",
                f"{x.sparsity_b:.4f}",
                f"{x.sparsity_b - x.sparsity_a:+.4f}",
                f"{x.iou:.4f}",
                f"{x.revived:,}",
                f"{x.died:,}",
            ]
            for x in layers
        ]
        show_table(console, _COLUMNS, rows)
    if len(layers) < len(found.layers):
        say(f"{len(layers)} of {len(found.layers)} layers are listed; the totals are of all")
    for name, reason in found.unmatched:
        say(f"not compared: {name} ({reason})")
    say(
        f"live weights shared: IoU {found.iou:.4f}; {found.revived:,} dead in A and alive in B (revived), "
        f"{found.died:,} alive in A and dead in B (died)"
    )
    say("all tensors are equal" if found.same_weights else "the weights differ")
    flips = found.predictions
    if flips is not None:
        for note in flips.notes:
            say(note)
        say(
            f"{flips.flipped:,} of {flips.images:,} predictions differ on {flips.data}: top-1 {flips.top1_a:.2%} (A), "
            f"{flips.top1_b:.2%} (B); right only in A {flips.right_only_in_a:,}, only in B {flips.right_only_in_b:,}"
        )
    for which, side in (("A", found.a), ("B", found.b)):
        for line in problems(side):
            console.print(Text(printable(f"{which}: {line}", 2000), style="bold yellow"))
