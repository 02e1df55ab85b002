"""The Python API for checkpoints: `load`, `load_model`, `sparsify` and `warmup` of `starfire_cli`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from starfire_cli.api._arguments import Normalisation, model_spec, path_argument, whole_argument
from starfire_cli.api._errors import python_errors
from starfire_cli.api._types import check_arguments, shown
from starfire_cli.errors import BadOption

if TYPE_CHECKING:
    from torch import Tensor, nn

    from starfire_cli.sparse import SparseNetwork


def load(path: str | PathLike[str], *, weights: str | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint of any format: packed, `.pt`, safetensors, or a run folder (its best).

    Args:
        path: the file or folder.
        weights: of a file with several networks, `"model"` for what was trained, `"ema"` for its average, or a name in
            the file. Default: what was trained, if it is there; of starfire's own, what was measured.

    Raises:
        StarfireError: the file is missing, damaged, or no checkpoint; one line that says which.
    """
    from starfire_cli.formats.checkpoint import file as checkpoint
    from starfire_cli.formats.packed import read as packed
    from starfire_cli.formats.run import find_checkpoint

    with python_errors():
        file = find_checkpoint(path_argument("path", path))
        if packed.is_packed(file) and weights is None:
            return packed.load_state(file)
        return checkpoint.load(file, weights=weights).state


def load_model(
    path: str | PathLike[str],
    *,
    device: str = "cpu",
    sparse: bool = False,
    rivals: bool = True,
    model: str | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> nn.Module:
    """The network in a checkpoint, ready to use: in eval mode, from pixels to logits.

    Args:
        path: as for `load`.
        device: where it is wanted; any name that torch knows.
        sparse: run on the CPU from the weights that are not zero (docs/inference.md). Where llvmlite is missing (it
            comes with the extra `fast`), one warning says so and the network is dense.
        rivals: with `sparse`, let a dense engine run the network where it is faster (see `sparsify`).
        model: which network it is (`resnet50`, `timm:NAME`, `package.module:callable`), if the file does not say.
        weights: as for `load`.
        num_classes: how many logits it gives, if the file does not say.
        mean: of the pixels it was trained on, in [0, 1], if the file does not say: three numbers, or one for all
            channels.
        std: likewise.

    Returns:
        A module that takes pixels in [0, 1], (N, 3, H, W), and normalises them itself; `.net` is the plain network.

    Raises:
        StarfireError: as for `load`, or something is neither said nor given, or the weights do not fit.
    """
    from starfire_cli import runtime
    from starfire_cli.formats.checkpoint import file as checkpoint
    from starfire_cli.formats.run import find_checkpoint
    from starfire_cli.networks.restore import restore_model

    with python_errors():
        classes, spec, normalised = (
            whole_argument("num_classes", num_classes),
            model_spec(model),
            Normalisation.given(mean, std),
        )
        file = checkpoint.load(find_checkpoint(path_argument("path", path)), weights=weights)
        place = runtime.pick_device(device)
        if sparse and place.type != "cpu":
            raise BadOption(f"sparse=True runs on the CPU, not on device={device!r}; leave one of them out")
        net = restore_model(
            file, place, model=spec, num_classes=classes, mean=normalised.mean, std=normalised.std
        ).model
    del file  # the network has a copy of its weights
    if not sparse:
        return net
    from starfire_cli.sparse import missing

    if reason := missing():
        warnings.warn(f"sparse=True runs dense: {reason}", stacklevel=2)
        return net
    return sparsify(net, rivals=rivals)


def sparsify(model: nn.Module, masks: Mapping[str, Tensor] | None = None, *, rivals: bool = True) -> SparseNetwork:
    """A network that runs from the weights of `model` that are not zero: on the CPU, in float32, in eval mode.

    Args:
        model: any module that torch.fx can trace; it stays as it is.
        masks: by parameter name, bool, True is alive; what is not counts as zero. Without masks, only zeros do.
        rivals: where the zeros are too few to pay for images of a shape, let the fastest dense engine at hand run the
            network: torch, or ONNX Runtime, whose export takes some seconds when such images come first. False for
            own loops alone, with torch for single layers.

    Raises:
        StarfireError: it cannot be traced, a mask does not fit, or llvmlite is missing.
    """
    from torch import nn

    from starfire_cli.formats.onnx_session import export_and_open
    from starfire_cli.sparse import Rivals
    from starfire_cli.sparse import sparsify as made

    check_arguments(sparsify, locals())
    if not isinstance(model, nn.Module):
        raise BadOption(f"model is a {type(model).__name__}; a torch.nn.Module works, or load_model(path, sparse=True)")
    return made(model, masks, rivals=Rivals(onnxruntime=export_and_open) if rivals else None)


def warmup(model: SparseNetwork, *images: Sequence[int]) -> None:
    """Compile loops and measure which are fastest now, instead of at the first images.

    Args:
        model: what `sparsify` or `load_model(..., sparse=True)` returned; a dense network is left alone.
        images: shapes (N, C, H, W) that will come. Only whether N is 1 or more matters.
    """
    from starfire_cli.sparse import SparseNetwork

    for shape in images:
        sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
        if len(sizes) != 4 or not all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in sizes):
            raise BadOption(f"{shown('images', shape)}; a shape (N, C, H, W) works, such as (1, 3, 224, 224)")
        if isinstance(model, SparseNetwork):
            model.choices((sizes[0], sizes[1], sizes[2], sizes[3]))
