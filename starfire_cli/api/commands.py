"""`inspect`, `attack` and `compress`: what the commands of these names do, from Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

from starfire_cli.api._arguments import SAVED, AnyPath, Normalisation, channel_numbers, path_argument, plain
from starfire_cli.api._errors import in_python, python_errors
from starfire_cli.api._types import check_arguments, shown
from starfire_cli.api.checkpoints import load_model
from starfire_cli.errors import BadOption

if TYPE_CHECKING:
    from torch import Tensor, nn

    from starfire_cli.records.attack import RobustAccuracy
    from starfire_cli.records.compress import Compressed
    from starfire_cli.records.inspect import Comparison, Inspection
    from starfire_cli.workflows.attach.attached import AttachedPruner


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
    from starfire_cli.numbers import parse_input
    from starfire_cli.workflows.inspect.run import inspect_fitted, open_checkpoint

    with python_errors(input="image"):
        files = [path_argument("path", path, hint=SAVED)]
        files += [] if other is None else [path_argument("other", other, hint=SAVED)]
        if image is not None and not isinstance(image, str):
            raise BadOption(f"image={image!r} is of type {type(image).__name__}; a text such as '3x224x224' works")
        size = parse_input(image)
        fitted = [inspect_fitted(open_checkpoint(file, weights), model=model, image=size) for file in files]
        found = [replace(one, notes=tuple(map(in_python, one.notes))) for one, _ in fitted]
        if len(files) == 1:
            return found[0]
        from starfire_cli.workflows.inspect.compare import compare

        return compare(fitted[0][1], fitted[1][1], *found)


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
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    control: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> RobustAccuracy:
    """Measure the accuracy of a network on images that are moved against it, by at most `eps`.

    Args:
        model: from images to logits, or to something with `logits`, on its device; or the path of a checkpoint, as for
            `load_model`.
        loader: batches of images, (N, C, H, W), and labels, (N,), or dicts of these (`pixel_values` or `image`, and
            `labels` or `label`); pixels in [0, 1] unless `mean` and `std` are given.
        eps: sizes in pixels of [0, 1]: a list of numbers or texts such as "8/255", or one of them; 0 is without attack.
            Default: 0, 0.01, 0.05; for l2 0, 0.25, 0.5, 1.
        attack: "fgsm", "pgd", "autoattack", ..., with options as in "pgd:steps=20" (docs/attack.md).
        norm: "linf" or "l2".
        steps: gradients a start.
        step_size: length of a step.
        restarts: random starts an image; the worst one counts.
        mean: with which the loader normalises its images, as for the model: a list, tensor or array of one number a
            channel, or one number for all.
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
    check_arguments(_ATTACK, locals())
    from torch import nn

    from starfire_cli.records.attack import AttackProgress
    from starfire_cli.report.progress import progress as bar
    from starfire_cli.sparse import SparseNetwork
    from starfire_cli.workflows.attack.own_loader import attack_network

    if isinstance(model, nn.Module) and any(isinstance(part, SparseNetwork) for part in model.modules()):
        raise BadOption(
            "model is a sparse network, which only predicts and gives no gradients to attack it with; the dense one "
            "works, starfire.load_model(path) without sparse=True, or what was given to sparsify"
        )
    if not isinstance(model, nn.Module | str | PathLike):
        raise BadOption(
            f"{shown('model', model)}; a torch.nn.Module{' (pruner.network is one)' * hasattr(model, 'network')} or "
            "the path of a checkpoint works"
        )
    with python_errors():
        means, stds = channel_numbers("mean", mean), channel_numbers("std", std)
        sizes = _sizes(eps)
    try:
        network = model if isinstance(model, nn.Module) else load_model(model, mean=means, std=stds)
    except BadOption as error:
        raise BadOption(f"{error}; attack takes it from starfire.load_model(path, ...)") from None
    with python_errors():
        if not isinstance(model, nn.Module) and means is not None:
            network = network.get_submodule("net")  # which takes normalised images, as the loader has them
        options = {"norm": norm, "steps": plain(steps), "step_size": plain(step_size), "restarts": plain(restarts)}
        found = None
        with bar("attack", progress) as update:
            for record in attack_network(
                network,
                loader,
                attack=attack,
                eps=sizes,
                options=options,
                mean=means,
                std=stds,
                control=control,
                seed=plain(seed),
            ):
                if isinstance(record, AttackProgress):
                    update(record.done, record.total)
                else:
                    found = record
        assert found is not None, "it ends with a result or raises"
        return found


_ATTACK = attack  # which an argument of it hides there


def _sizes(eps: object) -> str | None:
    """As the command line takes them. Raises BadOption."""
    if eps is None or isinstance(eps, str):
        return eps
    if hasattr(eps, "tolist"):  # a tensor or an array, which may hold float32
        listed = eps.tolist()
        return ",".join(f"{one:.7g}" for one in listed) if isinstance(listed, list) else f"{listed:.7g}"
    every = list(eps) if isinstance(eps, Iterable) else [eps]
    if not every:
        raise BadOption(f"eps={eps!r} names no size; numbers and texts work, such as [0, 0.01, '8/255']")
    for one in every:
        if isinstance(one, bool) or not isinstance(one, int | float | str):
            raise BadOption(f"eps: {one!r} is a {type(one).__name__}; numbers and texts work, such as '8/255'")
    return ",".join(map(str, every))


def compress(
    source: nn.Module | AttachedPruner | AnyPath,
    path: AnyPath,
    *,
    masks: Mapping[str, Tensor] | Literal["stored", "from-zeros"] | None = None,
    values: str = "exact",
    effort: str = "normal",
    keep_plain: bool = False,
    verify: bool = True,
    data: str | None = None,
    images: int | None = None,
    model: str | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Compressed:
    """Pack a network into a file as small as its information. `load` and `load_model` read it, nothing is lost.

    Args:
        source: what `attach` returned, a module, or the path of a checkpoint.
        path: the packed file, NAME.safetensors.
        masks: of a module, by state-dict key; without them, every zero of a layer is called dead. Of a checkpoint,
            "stored" or "from-zeros".
        values: "exact", or round weights: "bf16", "fp16" or "codebook:bits=5" (docs/compress.md).
        effort: time spent on size: "fast", "normal" or "best".
        keep_plain: leave every layer that was never pruned readable by any safetensors reader.
        verify: read the file back before it is named.
        data: with `values`: where to measure accuracy, such as "cifar10:PATH" or "folder:PATH". Default: the
            checkpoint's data, if it says.
        images: measure on so many images only.
        model: with `values`: which network it is ("resnet50", "timm:NAME", "package.module:callable"), if the file does
            not say.
        mean: likewise, of the pixels it was trained on, in [0, 1]: three numbers, or one for all channels.
        std: likewise.

    Returns:
        A `Compressed` with `packed` (sizes, in total and by tensor), `ratio`, `rounding`, `accuracy` and `notes`.

    Warns:
        Nothing of it is pruned, or the era of the pruner is not over.

    Raises:
        StarfireError: it cannot be written, or the source is no checkpoint; an old file is untouched.
        Mismatch: a dead weight is not zero.
    """
    check_arguments(compress, locals())
    from torch import nn

    from starfire_cli.workflows.attach.attached import AttachedPruner
    from starfire_cli.workflows.attach.saving import as_checkpoint, module_checkpoint, warn_early
    from starfire_cli.workflows.attach.shards import ShardedPruner
    from starfire_cli.workflows.compress.request import CompressRequest
    from starfire_cli.workflows.compress.run import compress as compressed
    from starfire_cli.workflows.compress.run import compress_module

    in_memory = isinstance(source, nn.Module | AttachedPruner)
    if not in_memory and not isinstance(source, str | PathLike):
        raise BadOption(
            f"source is a {type(source).__name__}; a pruner, a torch.nn.Module or a checkpoint's path works"
        )
    with python_errors(out="path"):
        fits = isinstance(masks, Mapping) if in_memory else isinstance(masks, str)
        if masks is not None and not fits:
            works = "masks by state-dict key" if in_memory else "'stored' or 'from-zeros'"
            raise BadOption(f"masks: of {'a network in memory' if in_memory else 'a checkpoint'}, {works} work")
        normalised = Normalisation.given(mean, std)
        request = CompressRequest(
            checkpoint=None if in_memory else path_argument("source", source),
            masks=masks if isinstance(masks, str) else CompressRequest.masks,
            values=values,
            effort=effort,
            keep_plain=keep_plain,
            verify=verify,
            data=data,
            images=images,
            model=model,
            mean=normalised.mean,
            std=normalised.std,
            out=path_argument("path", path, hint=", in compress(source, path)"),
        )
        if isinstance(source, AttachedPruner):
            if isinstance(source.core, ShardedPruner):
                raise BadOption(
                    "the weights are sharded (FSDP2); starfire.save writes them whole, and compress that file"
                )
            outcomes = compress_module(as_checkpoint(source), request)
            warn_early(source)
        elif isinstance(source, nn.Module):
            outcomes = compress_module(module_checkpoint(source, None if isinstance(masks, str) else masks), request)
        else:
            outcomes = compressed(request)
        return _with_notes(outcomes)


def _with_notes(outcomes: Iterable[Any]) -> Compressed:
    from starfire_cli.records.compress import Compressed, Note

    found, notes = None, []
    for outcome in outcomes:
        if isinstance(outcome, Note):
            notes.append(in_python(outcome.text))
        elif isinstance(outcome, Compressed):
            found = outcome
    assert found is not None, "it ends with a result or raises"
    if not any(size.live < size.weights for size in found.packed.tensors):
        warnings.warn(
            f"nothing of {found.input} is pruned, so there is nothing to leave out: {found.output} is "
            f"{found.ratio:.2f} x smaller than its tensors in memory, by entropy coding alone",
            stacklevel=4,
        )
    return replace(found, notes=tuple(notes))
