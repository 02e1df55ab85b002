"""Holds what a checkpoint says about itself, its metadata, as typed records.

Anybody may have written them, and older versions wrote less: a field that is missing or makes no sense is None, and
`unusable` names those that make no sense. `values` are the metadata as they stand in the file, unknown names too.
`meta_reader` checks them once, when a file is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starfire_cli.damage import DamagedFile
from starfire_cli.numbers import RGB
from starfire_cli.pruning.channels.recipe import ShrinkRecipe
from starfire_cli.runtime import versions

if TYPE_CHECKING:
    from starfire_cli.data import DataInfo


@dataclass(frozen=True, kw_only=True)
class ModelMeta:
    """The network.

    Args:
        spec: what builds it; may name code, see `networks.model_spec`.
        num_classes: its logits.
        image_size: of the images it was made for, in pixels a side.
        shrink: how it was cut to fewer channels; empty where it was not, None where that makes no sense.
        unusable: fields that make no sense.
        values: as they stand in the file.
    """

    spec: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    shrink: ShrinkRecipe | None = field(default_factory=dict)
    unusable: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataMeta:
    """The data it was trained or measured on.

    Args:
        name: what the set is called.
        spec: opens the data; may be a URL.
        classes: their names.
        image_size: in pixels a side.
        resize: short side that validation images are scaled to, in pixels.
        mean: with which the network normalises pixels in [0, 1], per channel.
        std: likewise.
        augment: spec of the training augmentation.
        val_fraction: the share of the images held out for validation.
        split_seed: decides which these are.
        unusable: fields that make no sense.
        values: as they stand in the file; empty where it says nothing.
    """

    name: str | None = None
    spec: str | None = None
    classes: tuple[str, ...] | None = None
    image_size: int | None = None
    resize: int | None = None
    mean: RGB | None = None
    std: RGB | None = None
    augment: str | None = None
    val_fraction: float | None = None
    split_seed: int | None = None
    unusable: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def info(self) -> DataInfo | None:
        """The whole record, as the data were opened; None where there is none, or it makes no sense."""
        from starfire_cli.data import recorded  # numpy and Pillow come with it, which most readers do without

        try:
            return recorded(self.values)
        except DamagedFile:
            return None


@dataclass(frozen=True, kw_only=True)
class PruningMeta:
    """The pruning of a checkpoint's network: methods, target and era.

    Args:
        method: spec of the method for convolutions.
        fc: that for linear layers.
        target: the share of weights to prune.
        era: its first and last epoch; None without one, as for `prune-mask`.
        era_steps: its first and last step.
    """

    method: str | None = None
    fc: str | None = None
    target: float | None = None
    era: tuple[float, ...] | None = None
    era_steps: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class MetricsMeta:
    """Metrics at the time when the checkpoint was written; accuracies and sparsities are fractions."""

    val_top1: float | None = None
    val_top5: float | None = None
    sparsity_prunable: float | None = None
    sparsity_total: float | None = None
    epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Meta:
    """All of it.

    Args:
        model: the network.
        data: its data.
        pruning: how it was pruned.
        metrics: how good it is.
        request: the options of the run that wrote it, as `train` keeps them; None for other checkpoints.
        steps_per_epoch: of that run.
        values: as they stand in the file, to be written again.
    """

    model: ModelMeta = field(default_factory=ModelMeta)
    data: DataMeta = field(default_factory=DataMeta)
    pruning: PruningMeta = field(default_factory=PruningMeta)
    metrics: MetricsMeta = field(default_factory=MetricsMeta)
    request: dict[str, Any] | None = None
    steps_per_epoch: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int | None:
        """Of the data, else of the network, in pixels a side."""
        return self.model.image_size if self.data.image_size is None else self.data.image_size

    @property
    def unusable(self) -> tuple[str, ...]:
        """Fields of the data that make no sense, and the network's image size if nothing replaces it."""
        return tuple(dict.fromkeys((*self.data.unusable, *(self.model.unusable if self.image_size is None else ()))))


def new_meta(
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    pruning: PruningMeta,
    ramp: str | None,
    keep_dense: Sequence[str],
    only: Sequence[str],
    origin: Mapping[str, Any],
    hardware: Mapping[str, Any],
    command: str,
    seed: int,
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of a checkpoint that is written now, in plain values: the inverse of `meta_reader.read_meta`.

    Args:
        model: the network.
        data: its data; left out where nothing is known of them.
        pruning: how it was pruned.
        ramp: of the era.
        keep_dense: globs of the layers that were left dense.
        only: globs of the layers that alone were pruned.
        origin: the metrics of a run, or the source of what was pruned once.
        hardware: of this process.
        command: that makes it.
        seed: of everything random.
        run: what resuming needs, for checkpoints of a run.
    """
    return {
        "model": dict(model),
        **({"data": dict(data)} if data else {}),
        "pruning": {
            "method": pruning.method,
            "fc": pruning.fc,
            "target": pruning.target,
            "era": None if pruning.era is None else list(pruning.era),
            "era_steps": None if pruning.era_steps is None else list(pruning.era_steps),
            "ramp": ramp,
            "keep_dense": list(keep_dense),
            "only": list(only),
        },
        **origin,
        "versions": versions(),
        "hardware": dict(hardware),
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        **(run or {}),
    }
