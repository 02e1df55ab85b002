"""`inspect`, `attack`, `compress` and `plot`: what the commands of these names do, from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from starfire_cli.api._errors import python_errors
from starfire_cli.api.checkpoints import _channels, load_model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from starfire_cli.records.attack import RobustAccuracy
    from starfire_cli.records.compress import Compressed
    from starfire_cli.records.inspect import Comparison, Inspection
    from starfire_cli.report.plot.drawn import Figures
    from starfire_cli.workflows.attach.attached import AttachedPruner

AnyPath = str | PathLike[str]


@overload
def inspect(
    path: AnyPath, other: None = None, *, model: str | None = None, weights: str | None = None, image: str | None = None
) -> Inspection: ...
@overload
def inspect(
    path: AnyPath, other: AnyPath, *, model: str | None = None, weights: str | None = None, image: str | None = None
) -> Comparison: ...
def inspect(
    path: AnyPath,
    other: AnyPath | None = None,
    *,
    model: str | None = None,
    weights: str | None = None,
    image: str | None = None,
) -> Inspection | Comparison:
    """Measure how sparse a checkpoint is, layer by layer, and what its zeros have in common; or compare two.

    Args:
        path: a checkpoint of any format, or a run folder.
        other: a second one to compare with the first.
        model: which network it is, if the file does not say; gives groups, model order and multiply-accumulates.
        weights: of a file with several networks, "model" for what was trained, "ema" for its average.
        image: the image for which multiply-accumulates are counted, such as "3x224x224".

    Returns:
        An `Inspection` with `layers`, `sparsity_prunable`, `macs`, `bytes_packed`, `consistent` and more; of two
        checkpoints a `Comparison` with `layers`, `iou`, `revived` and `died`. A notebook shows either as a table.

    Raises:
        StarfireError: a file is missing, damaged, or no checkpoint, or is not the model's.
    """
    from starfire_cli.values import parse_input
    from starfire_cli.workflows.inspect.run import inspect_fitted, open_checkpoint

    with python_errors():
        _refuse_no_path("path", path)
        size = parse_input(image)
        one, first = inspect_fitted(open_checkpoint(Path(path), weights), model=model, image=size)
        if other is None:
            return one
        from starfire_cli.workflows.inspect.compare import compare

        two, second = inspect_fitted(open_checkpoint(Path(other), weights), model=model, image=size)
        return compare(first, second, one, two)


def _refuse_no_path(name: str, given: object) -> None:
    from starfire_cli.errors import BadOption

    if not isinstance(given, str | PathLike):
        raise BadOption(f"{name} is of type {type(given).__name__}; the path of a checkpoint or run folder works")


def attack(
    model: nn.Module | AnyPath,
    loader: Iterable[Any],
    *,
    eps: Sequence[float | str] | float | str | None = None,
    attack: str = "fgsm",
    norm: str | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    control: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> RobustAccuracy:
    """Measure the accuracy of a network on images that are moved against it, by at most `eps`.

    Args:
        model: from images to logits, on its device; or the path of a checkpoint, as for `load_model`.
        loader: batches of images, (N, C, H, W), and labels, (N,); pixels in [0, 1] unless `mean` and `std` are given.
        eps: sizes in pixels of [0, 1]: a list of numbers or texts such as "8/255", or one; 0 is without attack.
            Default: 0, 0.01, 0.05; for l2 0, 0.25, 0.5, 1.
        attack: "fgsm", "pgd", "autoattack", ..., with options as in "pgd:steps=20" (docs/attack.md).
        norm: "linf" or "l2".
        steps: gradients a start.
        step_size: length of a step.
        restarts: random starts an image; the worst one counts.
        mean: with which the loader normalises its images, per channel, as for the model.
        std: likewise.
        control: also measure random noise of the same size, and FGSM beside stronger attacks.
        seed: of whatever the attack draws.
        progress: whether a bar is shown; None: on a terminal or in a notebook.

    Returns:
        A `RobustAccuracy` with `points` (a `RobustPoint` for each eps: `top1`, its interval, `drop`), `controls` and
        `warnings`; a notebook shows it as a table. `model` is in the mode in which it was.

    Raises:
        BadOption, StarfireError: the loader or an option makes no sense, or the file is no checkpoint.
    """
    from torch import nn

    from starfire_cli.errors import BadOption
    from starfire_cli.records.attack import AttackProgress
    from starfire_cli.report.progress import progress as bar
    from starfire_cli.workflows.attack.own_loader import attack_network

    if not isinstance(model, nn.Module | str | PathLike):
        raise BadOption(f"model is a {type(model).__name__}; a torch.nn.Module or the path of a checkpoint works")
    with python_errors():
        means, stds = _channels("mean", mean, 0.0), _channels("std", std, 1e-6)
    network = model if isinstance(model, nn.Module) else load_model(model, mean=means, std=stds)
    with python_errors():
        if not isinstance(model, nn.Module) and means is not None:
            network = network.get_submodule("net")  # which takes normalised images, as the loader has them
        options = {"norm": norm, "steps": steps, "step_size": step_size, "restarts": restarts}
        found = None
        with bar("attack", progress) as update:
            for record in attack_network(
                network,
                loader,
                attack=attack,
                eps=_sizes(eps),
                options=options,
                mean=means,
                std=stds,
                control=control,
                seed=seed,
            ):
                if isinstance(record, AttackProgress):
                    update(record.done, record.total)
                else:
                    found = record
        assert found is not None, "it ends with a result or raises"
        return found


def _sizes(eps: Sequence[float | str] | float | str | None) -> str | None:
    """As the command line takes them."""
    if eps is None or isinstance(eps, str):
        return eps
    return ",".join(map(str, eps)) if isinstance(eps, Sequence) else str(eps)


def compress(
    model: nn.Module | AttachedPruner | AnyPath,
    path: AnyPath,
    *,
    masks: Mapping[str, Tensor] | None = None,
    values: str = "exact",
    effort: str = "normal",
    keep_plain: bool = False,
    verify: bool = True,
    data: str | None = None,
    images: int | None = None,
) -> Compressed:
    """Pack a network into a file as small as its information. `load` and `load_model` read it, nothing is lost.

    Args:
        model: what `attach` returned, a module, or the path of a checkpoint.
        path: the packed file, NAME.safetensors.
        masks: of a module, by state-dict key; without them, every zero of a layer is called dead.
        values: "exact", or round weights: "bf16", "fp16" or "codebook:bits=5" (docs/compress.md).
        effort: time spent on size: "fast", "normal" or "best".
        keep_plain: leave every layer that was never pruned readable by any safetensors reader.
        verify: read the file back before it is named.
        data: with `values`, of a checkpoint: where to measure accuracy.
        images: measure on so many images only.

    Returns:
        A `Compressed` with `packed` (sizes, in total and by tensor), `ratio`, `rounding`, `accuracy` and `notes`.

    Raises:
        StarfireError: it cannot be written, or the model is no checkpoint; an old file is untouched.
        Mismatch: a dead weight is not zero.
    """
    from torch import nn

    from starfire_cli.errors import BadOption
    from starfire_cli.workflows.attach.attached import AttachedPruner
    from starfire_cli.workflows.compress.request import CompressRequest
    from starfire_cli.workflows.compress.run import compress as compressed
    from starfire_cli.workflows.compress.run import compress_module

    if not isinstance(model, nn.Module | AttachedPruner | str | PathLike):
        raise BadOption(f"model is a {type(model).__name__}; a pruner, a torch.nn.Module or a checkpoint's path works")
    with python_errors():
        source = None if isinstance(model, nn.Module | AttachedPruner) else Path(model)
        request = CompressRequest(
            checkpoint=source,
            values=values,
            effort=effort,
            keep_plain=keep_plain,
            verify=verify,
            data=data,
            images=images,
            out=Path(path),
        )
        if isinstance(model, AttachedPruner):
            from starfire_cli.workflows.attach.saving import as_checkpoint

            outcomes = compress_module(as_checkpoint(model), request)
        elif isinstance(model, nn.Module):
            from starfire_cli.workflows.attach.saving import module_checkpoint

            outcomes = compress_module(module_checkpoint(model, masks), request)
        else:
            outcomes = compressed(request)
        return _with_notes(outcomes)


def _with_notes(outcomes: Iterable[Any]) -> Compressed:
    from dataclasses import replace

    from starfire_cli.records.compress import Compressed, Note

    found, notes = None, []
    for outcome in outcomes:
        if isinstance(outcome, Note):
            notes.append(outcome.text)
        elif isinstance(outcome, Compressed):
            found = outcome
    assert found is not None, "it ends with a result or raises"
    return replace(found, notes=tuple(notes))


def plot(
    *paths: AnyPath,
    kind: str | Sequence[str] = (),
    x: str = "epoch",
    layer: str | None = None,
    weights: str | None = None,
    width: float = 7.2,
    progress: bool | None = None,
) -> Figures:
    """Draw runs and checkpoints: accuracy, sparsity, layers, masks, robustness, trade-offs.

    Args:
        paths: run folders, folders of them, checkpoints, results of attack or compress. Default: the newest run.
        kind: "convergence", "sparsity", "tradeoff", "layers", "window", "kernels" or "robustness", or several.
            Default: what the paths allow.
        x: time in "epoch" or "step".
        layer: glob of the layers whose masks "kernels" shows.
        weights: of a file with several networks which; as for `load`.
        width: inches, 3 to 20.
        progress: whether a bar is shown; None: on a terminal or in a notebook.

    Returns:
        `Figures`: a dict of matplotlib figures by kind, with `notes` and `save(path)`; a notebook shows them.

    Raises:
        StarfireError: nothing can be drawn, in one line.
    """
    from starfire_cli.workflows.plot.request import PlotRequest

    with python_errors():
        from starfire_cli import options
        from starfire_cli.report.plot.kinds import parse_kinds

        kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        request = PlotRequest(paths=tuple(map(Path, paths)), kind=kinds, x=x, layer=layer, weights=weights, width=width)
        options.check(request)
        return _drawn(request, parse_kinds(kinds), progress)


def _drawn(request: Any, kinds: list[str], shown: bool | None) -> Figures:
    from starfire_cli.errors import StarfireError
    from starfire_cli.records.plot import NetworkPicture
    from starfire_cli.report.plot.drawn import Figures
    from starfire_cli.report.plot.groups import group_runs, with_experiment_titles
    from starfire_cli.report.plot.kinds import checkpoints_to_open, default_kinds, draw, omission_notes
    from starfire_cli.report.progress import progress
    from starfire_cli.workflows.plot.networks import open_networks
    from starfire_cli.workflows.plot.run import build_material, collect_sources

    sources = collect_sources(request.paths)
    groups = group_runs(sources.runs)
    wanted = kinds or default_kinds(sources.runs, sources.checkpoints, sources.curves)
    paths = checkpoints_to_open(wanted, groups, sources.checkpoints)
    networks = []
    looking = open_networks(sources, paths, masks="kernels" in wanted, layers=request.layer, weights=request.weights)
    with progress("checkpoints", shown if len(paths) > 1 else False) as update:
        for number, found in enumerate(looking, 1):
            update(number, len(paths))
            if isinstance(found, NetworkPicture):
                networks.append(found)
            else:
                sources.notes.append(found)
    material = with_experiment_titles(build_material(sources, networks), groups)
    figures, problems = {}, []
    for name in wanted:
        try:
            figures[name] = draw(name, material, axis=request.x, width=request.width, groups=groups)
        except StarfireError as error:
            problems.append(error)
    if not figures:
        raise problems[0] if problems else StarfireError(f"there is nothing to draw yet: {'; '.join(material.notes)}")
    said = [f"left out: {problem}" for problem in problems] if kinds else []
    left_out = omission_notes(list(figures), material, groups, sources.checkpoints)
    return Figures(figures, (*said, *material.notes, *left_out))
