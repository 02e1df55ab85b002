"""Display of `--dry-run`: the resolved settings, the network layer by layer, and the time line of the era."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from starfire_cli.records.train import TrainingPlan
from starfire_cli.text import duration_text, flops_text


def show_settings(console: Console, plan: TrainingPlan) -> None:
    """The resolved configuration, in as few lines as the width allows."""
    console.print("settings: " + "  ".join(f"{name} {value}" for name, value in plan.settings), markup=False)


def show_plan(console: Console, plan: TrainingPlan) -> None:
    """The whole plan of a run."""
    for note in plan.notes:
        console.print(note, markup=False)
    show_settings(console, plan)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    table.add_column("shape")
    table.add_column("what goes")
    for name in ("weights", "kept", "sparsity"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in plan.layers:
        shape = "x".join(map(str, row.shape))
        table.add_row(row.name, row.kind, shape, row.rule, f"{row.weights:,}", f"{row.left:,}", f"{row.sparsity:.4f}")
    console.print(table)
    console.print(
        f"in all {plan.dead:,} of {plan.prunable:,} prunable weights go: "
        f"sparsity {plan.dead / max(1, plan.prunable):.4f}, "
        f"and {plan.dead / max(1, plan.parameters):.4f} of all {plan.parameters:,} parameters",
        markup=False,
    )
    console.print(
        f"multiply-accumulates an image: {plan.macs:,} dense, {plan.macs_left:,} left "
        f"({plan.macs_left / max(1, plan.macs):.1%})",
        markup=False,
    )
    console.print(f"training: {_cost(plan)}", markup=False)
    if plan.dense_seconds is not None:
        console.print(f"time: {_time(plan, plan.dense_seconds)}", markup=False)
    for epoch, what in plan.timeline:
        console.print(f"epoch {round(epoch, 2):g}: {what}", markup=False)
    for name, why in plan.left_out:
        console.print(f"not pruned: {name} ({why})", markup=False)


def _cost(plan: TrainingPlan) -> str:
    """The FLOPs of the whole training, dense and as far as the era tells by live weights."""
    dense = flops_text(plan.dense_flops)
    if plan.cost_share is None:
        return f"{dense} dense; how much less live weights need is what has come out"
    return f"{dense} dense, {flops_text(plan.cost_share * plan.dense_flops)} by live weights ({plan.cost_share:.1%})"


def _time(plan: TrainingPlan, seconds: float) -> str:
    """The seconds of all steps on this machine."""
    less = ""
    if plan.may_skip and plan.cost_share is not None and plan.dead:
        less = f", {duration_text(plan.cost_share * seconds)} if those over live weights take what their FLOPs do"
    dense = f"about {duration_text(seconds)} of dense steps on this machine"
    return f"{dense}{less}; reading images and validation come on top"
