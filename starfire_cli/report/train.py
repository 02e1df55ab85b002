"""Display of `starfire train`: a live bar at a terminal, a plain line an epoch in a pipe, a closing table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from starfire_cli.records.train import EpochRecord, Finished, Notice, Record, Started, StepRecord, Stopped, TrainingPlan
from starfire_cli.report.console import open_console
from starfire_cli.report.dry_run import show_plan, show_settings
from starfire_cli.text import command_text, counted, flops_text


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of a run: the exit code, and the summary that `--json` prints (None if it did not finish)."""

    exit_code: int = 0
    summary: dict[str, Any] | None = None


def display(records: Iterable[Record], *, quiet: bool = False, to_stderr: bool = False, silent: bool = False) -> End:
    """Shows a run's records as they come (`silent`: none), and returns its end."""
    console = Console(quiet=True, force_terminal=False) if silent else open_console(stderr=to_stderr)
    screen = _Screen(console, quiet)
    end = End()
    try:
        for record in records:
            match record:
                case TrainingPlan():
                    screen.plan(record)
                case Started():
                    screen.started(record)
                case Notice():
                    screen.notice(record)
                case StepRecord():
                    screen.step(record)
                case EpochRecord():
                    screen.epoch(record)
                case Stopped():
                    end = screen.stopped(record)
                case Finished():
                    end = screen.finished(record)
        screen.end()
    finally:
        screen.close()
    return end


def decoding_display(*, to_stderr: bool = False, quiet: bool = False) -> Callable[[str, int, int], None]:
    """A callback (title, done, all) that shows the progress of decoding: a counting line, in a pipe one at the end."""
    console = open_console(stderr=to_stderr)

    def show(what: str, done: int, total: int) -> None:
        if quiet:
            return
        if console.is_terminal:
            console.print(f"{what}: {done:,} of {total:,}", end="\n" if done >= total else "\r", markup=False)
        elif done >= total:
            console.print(f"{what}: {total:,}", markup=False)

    return show


class _Screen:
    def __init__(self, console: Console, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._plan: TrainingPlan | None = None
        self._shown_plan = False
        self._progress: Progress | None = None
        self._epochs = 0
        self._steps = 0
        self._per_epoch = 1
        self._rounds = 1

    def plan(self, plan: TrainingPlan) -> None:
        self._plan = plan

    def started(self, record: Started) -> None:
        self._shown_plan = True
        self._epochs, self._steps, self._per_epoch = record.epochs, record.steps, record.steps_per_epoch
        self._rounds = record.rounds
        if self._quiet:
            return
        for note in record.notes:
            self._console.print(note, markup=False)
        if self._plan is not None:
            show_settings(self._console, self._plan)
        self._console.print(_opening(record), markup=False)
        if self._console.is_terminal:
            roomy = self._console.width >= 100
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=None if roomy else 8),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[figures]}"),
                *([TimeElapsedColumn()] if roomy else []),
                TextColumn("left"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
                expand=roomy,
            )
            self._progress.start()
            self._progress.add_task(f"epoch {record.epoch + 1}/{record.epochs}", total=record.steps, figures="")
            self._progress.update(self._progress.task_ids[0], completed=record.step)

    def notice(self, r: Notice) -> None:
        if not self._quiet:
            self._console.print(r.text, markup=False)

    def step(self, r: StepRecord) -> None:
        if self._progress is None:
            return
        wide = self._console.width >= 110
        figures = f"loss {r.loss:.3f} top1 {r.top1:.1%} sparsity {r.sparsity:.1%}"
        if wide:
            figures += f" (threshold {r.threshold:.1%}) {r.images_per_second:,.0f} img/s"
            figures += f" {flops_text(r.training_flops, r.dense_flops)}" if r.training_flops is not None else ""
        elif self._console.width < 100:
            figures = f"top1 {r.top1:.1%} sp {r.sparsity:.0%}"
        self._progress.update(
            self._progress.task_ids[0],
            completed=r.step,
            description=f"epoch {r.epoch}/{self._epochs}",
            figures=figures,
        )

    def epoch(self, r: EpochRecord) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=r.step)
        if self._quiet:
            return
        fields = [
            f"epoch {r.epoch}/{self._epochs}",
            f"loss {r.train_loss:.4f}",
            f"val {r.val_top1:.2%}",
            f"sparsity {r.sparsity_prunable:.4f}",
            # from here on, only where there is room
            f"threshold {r.threshold:.3f}",
            f"{r.images_per_second:,.0f} img/s",
            f"train {r.train_top1:.2%}",
            f"top5 {r.val_top5:.2%}",
            f"lr {r.lr:.3g}",
            f"step {r.step}",
        ]
        if r.training_flops is not None and r.dense_flops:
            fields.insert(-3, f"cost {r.training_flops / r.dense_flops:.1%} of dense")
        if r.round is not None:
            fields.insert(1, f"round {r.round}/{self._rounds}")
        if r.robust_top1 is not None:
            fields.insert(-7, f"robust {r.robust_top1:.2%}")
        marker = "  best" if r.best else ""
        while len(fields) > 4 and len("  ".join(fields) + marker) > self._console.width:
            fields.pop()
        self._console.print("  ".join(fields) + marker, markup=False)

    def stopped(self, r: Stopped) -> End:
        self.close()
        if r.loss is not None and r.top1 is not None and not self._quiet:
            so_far = [f"epoch {r.epoch + 1}/{self._epochs} so far", f"loss {r.loss:.4f}", f"train {r.top1:.2%}"]
            so_far += [f"{r.images_per_second:,.0f} img/s"] if r.images_per_second else []
            self._console.print("  ".join(so_far), markup=False)
        name = {2: "interrupted (Ctrl-C)", 15: "terminated (SIGTERM)"}.get(r.signal, "stopped as asked")
        self._console.print(f"{name} after step {r.step} of {r.steps}; saved. To go on:", markup=False)
        self._console.print(command_text(r.command), markup=False)
        return End(exit_code=128 + r.signal if r.signal else 0)

    def finished(self, r: Finished) -> End:
        self.close()
        target = "no target" if r.target is None else f"target {r.target:g}"
        rows = (
            ("best checkpoint", str(r.checkpoint)),
            ("top-1 / top-5", f"{r.val_top1:.2%} / {r.val_top5:.2%}"),
            ("sparsity", f"{r.sparsity_prunable:.4f} of prunable weights ({target})"),
            ("", f"{r.sparsity_total:.4f} of all parameters"),
            *_cost(r),
            ("time", f"{r.seconds:.1f} s for {counted(r.epochs, 'epoch')}, {r.images_per_second:,.0f} images/s"),
            ("next", command_text(("starfire", "inspect", str(r.checkpoint)))),
        )
        if not (self._quiet and self._console.stderr):
            for line in (*r.notes, *(f"{left:<17}{right}" for left, right in rows)):
                self._console.print(line, markup=False)
        keys = ("run", "checkpoint", "val_top1", "val_top5", "target", "sparsity_prunable", "sparsity_total", "epochs")
        costs = ("seconds", "images_per_second", "training_flops", "dense_flops")
        summary = {k: getattr(r, k) for k in (*keys, *costs)}
        return End(summary=summary | {"run": str(r.run), "checkpoint": str(r.checkpoint)})

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def end(self) -> None:
        """Shows the plan, if nothing came after it."""
        if self._plan is not None and not self._shown_plan:
            show_plan(self._console, self._plan)


def _opening(record: Started) -> str:
    """The line of a run that begins, goes on, or has nothing left to train."""
    if record.resumed and record.epoch >= record.epochs:
        return f"{record.run} is trained to its end, {record.epochs} epochs; a larger --epochs goes on"
    return f"{'going on in' if record.resumed else 'run folder'} {record.run}"


def _cost(r: Finished) -> list[tuple[str, str]]:
    """The closing table's row of training FLOPs, where the run has counted them."""
    if r.training_flops is None or not r.dense_flops:
        return []
    shown = flops_text(r.training_flops, r.dense_flops)
    return [("training cost", f"{shown} by live weights, {r.training_flops / r.dense_flops:.1%} of dense")]
