"""Plot records of checkpoints: layers, windows, masks and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.packed.read import is_packed
from starfire_cli.networks.title import checkpoint_method, checkpoint_title
from starfire_cli.pruning.layers import Kind, Layer
from starfire_cli.pruning.stats import kept_in_kernels
from starfire_cli.records.inspect import LayerFinding
from starfire_cli.records.plot import MaskPicture, NetworkPicture
from starfire_cli.workflows.inspect.run import inspect_fitted, open_checkpoint
from starfire_cli.workflows.plot.run import Sources, real_path
from starfire_cli.workflows.plot.run_files import is_run

_CORNER = 24  # kernels a side of the part of a mask that is shown weight by weight
_PICTURES = 3  # layers whose masks are shown where none are named
_BROAD = 8  # channels; a stem of three has little to show


def open_networks(
    sources: Sources,
    paths: Sequence[Path],
    *,
    masks: bool = False,
    layers: str | None = None,
    weights: str | None = None,
) -> Iterator[NetworkPicture | str]:
    """Opens the checkpoints one after the other; yields a note in place of one that cannot be read.

    Args:
        sources: of `collect_sources`.
        paths: which of its checkpoints.
        masks: whether to bring the masks of layers along.
        layers: glob for these; None for an early, a middle and a late one.
        weights: of a file with several networks which; see `formats.checkpoint.file.load`.

    Raises:
        BadOption: `layers` matches nothing in any of them.
    """
    missed = 0
    for path in paths:
        try:
            picture = _open_network(path, masks, layers, weights)
        except BadOption as error:
            missed += 1
            if missed == len(paths):
                raise
            yield f"left out: {error}"
        except StarfireError as error:
            yield f"left out: {error}"
        else:
            packed = sources.packed.get(real_path(path)) or _packed_beside(path)
            yield replace(picture, packed=packed)


def _open_network(path: Path, masks: bool, glob: str | None, weights: str | None) -> NetworkPicture:
    inspection, checkpoint = inspect_fitted(open_checkpoint(path, weights))
    named = checkpoint_method(checkpoint)
    layers = _chosen(inspection.layers, glob, path) if masks else ()
    return NetworkPicture(
        title=checkpoint_title(checkpoint),
        method=named[0] if named is not None else "?",
        inspection=inspection,
        run=path.parent if is_run(path.parent) else None,
        masks=tuple(_mask_of(checkpoint, layer) for layer in layers),
    )


def _mask_of(checkpoint: Checkpoint, finding: LayerFinding) -> MaskPicture:
    layer = Layer(
        name=finding.name,
        key=finding.key,
        kind=cast(Kind, finding.kind),
        shape=finding.shape,
        groups=finding.groups,
    )
    stored = (checkpoint.masks or {}).get(finding.key)
    alive = checkpoint.state[finding.key] != 0 if stored is None else stored
    window = (finding.shape[2], finding.shape[3]) if len(finding.shape) == 4 else (1, 1)
    corner = alive[:_CORNER, :_CORNER].numpy()
    return MaskPicture(
        name=finding.name,
        window=window,
        kept_KC=kept_in_kernels(layer, alive),
        corner_KCRS=corner.reshape(*corner.shape[:2], *window).copy(),
    )


def _chosen(layers: Sequence[LayerFinding], glob: str | None, path: Path) -> Sequence[LayerFinding]:
    """The layers whose masks are drawn: those that match, or an early, a middle and a late one with windows."""
    if glob is not None:
        found = [x for x in layers if fnmatchcase(x.name, glob)]
        if not found:
            names = ", ".join(x.name for x in layers[:6]) + (", ..." if len(layers) > 6 else "")
            raise BadOption(f"--layer {glob!r} matches no layer of {path}; there are {len(layers)}: {names}")
        return found
    pruned = [x for x in layers if x.zeros] or list(layers)
    windows = [x for x in pruned if x.kind == "window"] or pruned
    windows = [x for x in windows if min(x.shape[:2]) >= _BROAD] or windows  # not the stem's few channels
    if len(windows) <= _PICTURES:
        return windows
    last = len(windows) - 1
    return [windows[round(i * last / (_PICTURES - 1))] for i in range(_PICTURES)]


def _packed_beside(path: Path) -> tuple[Path, int] | None:
    for file in (path, path.with_suffix(".safetensors"), path.with_name(f"{path.stem}.packed.safetensors")):
        if file.is_file() and is_packed(file):
            return file, file.stat().st_size
    return None
