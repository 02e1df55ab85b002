"""TensorBoard logging: writes a run's records as event files into the run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from starfire_cli.errors import StarfireError, unknown
from starfire_cli.records.train import EpochRecord, Record, Started, StepRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOGGERS = ("none", "tensorboard")
# Called as TensorBoard users group things; what is not named here comes under its own name.
_TAGS = {
    "train_loss": "train/loss",
    "train_top1": "train/top1",
    "val_loss": "val/loss",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "robust_top1": "val/robust_top1",
    "threshold": "sparsity/threshold",
    "sparsity_prunable": "sparsity/prunable",
    "sparsity_total": "sparsity/total",
    "lr": "train/lr",
    "images_per_second": "speed/images_per_second",
    "seconds": "speed/epoch_seconds",
    "mask_seconds": "speed/mask_seconds",
}


def logged(records: Iterator[Record], logger: str) -> Iterator[Record]:
    """The same records, written down as they pass: epochs by optimizer step, and the running loss within them.

    Args:
        records: of `workflows.train.train`.
        logger: one of LOGGERS.

    Raises:
        BadOption: there is no such logger.
        StarfireError: it is not installed; nothing has been trained by then.
    """
    if logger not in LOGGERS:
        raise unknown("--logger", logger, LOGGERS)
    if logger == "none":
        return records
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise StarfireError(
            '--logger tensorboard needs a package that is not installed: pip install "starfire-cli[tensorboard]"'
        ) from None
    return _to_tensorboard(records)


def _to_tensorboard(records: Iterator[Record]) -> Iterator[Record]:
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None
    try:
        for record in records:
            if isinstance(record, Started):
                # What a resumed run had written after the place where it goes on would be drawn twice.
                writer = SummaryWriter(str(record.run), purge_step=record.step + 1 if record.resumed else None)
            elif writer is not None:
                _write(writer, record)
            yield record
    finally:
        if writer is not None:
            writer.close()


def _write(writer: SummaryWriter, record: Record) -> None:
    if isinstance(record, StepRecord):
        writer.add_scalar("train/running_loss", record.loss, record.step)
    elif isinstance(record, EpochRecord):
        for name, value in dataclasses.asdict(record).items():
            if value is not None and name not in ("epoch", "step", "best"):
                writer.add_scalar(_TAGS.get(name, name), value, record.step)
        writer.add_scalar("train/epoch", record.epoch, record.step)
        writer.flush()
