"""The request of `starfire prune-mask`: its options, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.numbers import RGB, parse_list, parse_number
from starfire_cli.options import check, option, part
from starfire_cli.workflows.options import (
    BATCH_SIZE,
    CHANNEL_METHODS,
    CHECKPOINT,
    DATA,
    DATA_PANEL,
    DEVICE,
    FC,
    IMAGE_SIZE,
    KEEP_DENSE,
    MAX_NONZERO,
    MEAN,
    MODEL,
    ONESHOT_METHOD,
    ONLY,
    OUT,
    PRUNING_PANEL,
    SEED,
    STD,
    WEIGHTS,
    WORKERS,
)


def _parse_sweep(flag: str, text: str) -> tuple[float, ...]:
    """`0.1:0.9:0.1` (both ends belong to it) or `0.5,0.8` to targets. Raises BadOption."""
    try:
        if ":" not in text:
            return parse_list(flag, text, parse_number, "0.5,0.8")
        start, stop, step = (parse_number(part) for part in text.split(":"))
        count = int((stop - start) / step + 1e-6) + 1
        if step <= 0 or not 0 < count <= 1000:
            raise ValueError(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise BadOption(
            f"{flag} {text!r} is not START:STOP:STEP, such as 0.1:0.9:0.1, or a list, such as 0.5,0.8"
        ) from None
    return tuple(round(start + i * step, 9) for i in range(count))


@dataclass(frozen=True, kw_only=True)
class TrialRequest:
    """The data part of what was asked for; None means as the checkpoint says."""

    data: str | None = DATA.default(None)
    image_size: int | None = IMAGE_SIZE.default(None)
    mean: RGB | None = replace(
        MEAN, help="With which the network normalises pixels in [0, 1], where the file does not say."
    ).default(None)
    std: RGB | None = STD.default(None)
    batch_size: int = BATCH_SIZE.default(256)
    workers: int = WORKERS.default(2)
    device: str = DEVICE.default("auto")
    seed: int = SEED.default(0)


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """One call of `starfire prune-mask`: a `target` to write a checkpoint, or a `sweep` to measure some."""

    checkpoint: Path | None = CHECKPOINT.default(None)
    method: str = ONESHOT_METHOD.default("window")
    target: float | None = option(
        None,
        "The share of weights, or channels, to prune, 0 to below 1; writes a checkpoint.",
        short="-t",
        metavar="T",
        panel=PRUNING_PANEL,
    )
    max_nonzero: int | None = MAX_NONZERO.default(None)
    fc: str = FC.default("fine")
    keep_dense: tuple[str, ...] = KEEP_DENSE.default(())
    only: tuple[str, ...] = ONLY.default(())
    eliminate: bool = option(
        False,
        "Also remove linear weights behind dead channels, without changing the outputs.",
        panel=PRUNING_PANEL,
    )
    shrink: bool = option(
        False,
        "Remove dead channels for good: a smaller dense network with the same outputs.",
        panel=PRUNING_PANEL,
    )
    sweep: tuple[float, ...] | None = option(
        None,
        "Write nothing; measure the accuracy at each target instead. A list works too: 0.5,0.8.",
        metavar="START:STOP:STEP",
        panel=PRUNING_PANEL,
        parse=_parse_sweep,
    )
    per_layer: bool = option(
        False, "With --sweep: prune one layer at a time (the sensitivity of each).", panel=PRUNING_PANEL
    )
    model: str | None = MODEL.default(None)
    weights: str | None = WEIGHTS.default(None)
    evaluate: bool = option(
        False,
        "Measure accuracy before and after, on the checkpoint's data; --data implies it.",
        panel=DATA_PANEL,
    )
    recalibrate: int | None = option(
        None,
        "Refresh BatchNorm's statistics on N training batches.",
        metavar="N",
        panel=DATA_PANEL,
        low=1,
        range="batches, at least 1",
    )
    calibrate: int | None = option(
        None,
        "For methods that look at images: at N training images.",
        metavar="N",
        panel=DATA_PANEL,
        low=1,
        range="training images, at least 1",
    )
    trial: TrialRequest = part(TrialRequest)
    out: Path | None = OUT.default(None)
    command: str = "starfire prune-mask"

    @property
    def by_channels(self) -> bool:
        """Whether the method removes channels of a trained network."""
        return self.method.partition(":")[0].strip() in CHANNEL_METHODS

    @property
    def wants_data(self) -> bool:
        """Whether images are needed."""
        wanted = self.evaluate, self.trial.data is not None, self.recalibrate, self.calibrate, self.sweep is not None
        return any(wanted)

    @property
    def network_options(self) -> list[str]:
        """The options given that cannot be fulfilled without the network."""
        wishes = {
            f"--method {self.method}": self.by_channels,
            "--sweep": self.sweep is not None,
            "--eliminate": self.eliminate,
            "--shrink": self.shrink,
            "--recalibrate": self.recalibrate,
            "--evaluate": self.evaluate,
            "--data": self.trial.data,
        }
        return [option for option, given in wishes.items() if given]

    def check(self) -> None:
        """Raises BadOption for options that cannot mean anything, alone or together."""
        check(self)
        if (self.target is None) == (self.sweep is None) and not self.by_channels:
            raise BadOption("give either --target T, to prune and write, or --sweep START:STOP:STEP, to measure only")
        for target in (self.target, *(self.sweep or ())):
            if target is not None and not 0 <= target < 1:
                raise BadOption(f"{target:g} is no target; the share of weights to prune lies in 0 to below 1")
        if self.sweep is not None and (self.out or self.eliminate or self.shrink):
            raise BadOption("--sweep only measures; --out, --eliminate and --shrink go with --target")
        if self.calibrate is not None and not self.by_channels:
            raise BadOption(f"--calibrate {self.calibrate} is of no use: --method {self.method} looks at no images")
        if self.per_layer and self.sweep is None:
            raise BadOption("--per-layer belongs to --sweep START:STOP:STEP")
        if self.out is not None and self.out.suffix in (".safetensors", ".onnx"):
            raise BadOption(f"--out {self.out}: prune-mask writes a .pt; starfire compress turns it into other formats")
