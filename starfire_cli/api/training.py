"""`attach` and `save`: pruning in a training loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from starfire_cli.api._arguments import Normalisation, model_spec, path_argument, plain, whole_argument
from starfire_cli.api._errors import python_errors
from starfire_cli.api._types import check_arguments

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from starfire_cli.workflows.attach.attached import AttachedPruner


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    method: str = "window",
    target: float | None = None,
    fc: str = "fine",
    era: tuple[float, float] | None = None,
    era_epochs: tuple[float, float] | None = None,
    era_steps: tuple[int, int] | None = None,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    ramp: str = "linear",
    mask_every: int = 1,
    keep_dense: Sequence[str] = (),
    only: Sequence[str] = (),
    ema: Any = None,
    masks: Mapping[str, Tensor] | str | PathLike[str] | None = None,
    loss: Callable[[], Tensor] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    kernels: str = "auto",
    hooks: bool = True,
) -> AttachedPruner:
    """Prune `model` while a loop of your own trains it; the loop needs no other line.

    Hooks on the optimizer do all that is to be done at a step: gradients of dead weights are masked as they are
    computed, masks are evaluated after the step, and what dies is zero from then on, in weights, optimizer state
    and `ema`. Gradient accumulation, GradScaler, closures, clipping, learning-rate schedules, `torch.compile`,
    DistributedDataParallel and channels_last work as they are; FSDP2 works for methods that look at weights alone.
    Call it once model and optimizer are complete: on their device, wrapped or not, with the weights that training
    starts from.

    Args:
        model: the network, or its wrapper; `Conv2d` and `Linear` layers can be pruned. Frozen ones
            (`requires_grad=False`) are left alone and listed in `summary().left_out`.
        optimizer: what trains it; several as a list, where a step of training is one of each.
        method: as `starfire train --method`, such as "window", "ck", "gmp" or "rigl" (docs/methods.md).
        target: the final sparsity threshold, in [0, 1); None is 0.6. Penalties ("ssl", "slimming", "sss") meet none.
        fc: the method for linear layers; a method of the whole network takes them itself, and "dense" leaves them.
        era: when pruning begins and ends, as shares of the training, from 0 to 1; needs `total_steps`. Default: the
            method's own share, or (0.2, 0.6).
        era_epochs: the same in epochs; needs `steps_per_epoch`.
        era_steps: the same in optimizer steps.
        total_steps: optimizer steps of the training, usually `len(loader) * epochs`.
        steps_per_epoch: optimizer steps of an epoch.
        ramp: how the threshold rises in the era: "linear", "cubic" or "cosine".
        mask_every: masks are evaluated after every n-th step of the era.
        keep_dense: globs of layers that are left alone, by module name or state-dict key.
        only: globs of the only layers that are pruned.
        ema: the moving average of the model's weights, if there is one; dead weights are zero in it, too.
        masks: what is dead already and stays so: masks by state-dict key, or the path of a checkpoint that holds some.
        loss: for methods that look at a batch before the first step, such as "snip": a function of no arguments that
            returns the mean loss of one.
        image_size: pixels a side, for "l1-filter", which has to run the model.
        seed: of what a method draws at random.
        kernels: who computes masks; all give the same bits.
        hooks: False for explicit calls: `pruner.after_backward()` before the optimizer's step and
            `pruner.after_step()` after it.

    Returns:
        The pruner: `masks`, `sparsity`, `step`, `summary()`, `verify()`, `state_dict()`, `load_state_dict()` and
        `detach()`. The optimizer's hooks keep it alive.

    Raises:
        BadOption: something cannot work, in one line; nothing is changed then. For example an optimizer that calls no
            hooks, weights that it does not hold, quantised or meta parameters, or a second `attach`.
    """
    from starfire_cli.workflows.attach.build import AttachRequest
    from starfire_cli.workflows.attach.build import attach as attached
    from starfire_cli.workflows.attach.era_options import EraOptions

    check_arguments(attach, locals())
    if image_size is not None:
        whole_argument("image_size", image_size)
    with python_errors():
        return attached(
            model,
            optimizer,
            AttachRequest(
                method=method,
                fc=fc,
                target=plain(target),
                when=EraOptions(
                    era=plain(era),
                    era_epochs=plain(era_epochs),
                    era_steps=plain(era_steps),
                    total_steps=plain(total_steps),
                    steps_per_epoch=plain(steps_per_epoch),
                    ramp=ramp,
                    mask_every=plain(mask_every),
                ),
                only=only,
                keep_dense=keep_dense,
                masks=masks,
                loss=loss,
                image_size=plain(image_size),
                kernels=kernels,
                seed=plain(seed),
                hooks=hooks,
            ),
            ema,
        )


def save(
    path: str | PathLike[str],
    pruner: AttachedPruner,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    classes: Sequence[str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write the pruned model as a checkpoint that every command takes: weights, masks and metadata.

    It is a `.pt` file, and `torch.load(path, weights_only=True)["model"]` in it a plain state dict. With `ema` given to
    `attach` the average is saved as `model`, and what was trained beside it; commands and `load` read the average, and
    with `weights="model"` what was trained. Of several processes, call it in one; with FSDP2 in each, and the first
    writes.

    Args:
        path: the file; written whole or not at all, in a folder that exists.
        pruner: what `attach` returned.
        model: what builds the network: "resnet50" or "timm:NAME", so that `load_model` and `starfire attack` need not
            be told. It must be the model that these weights are of. "package.module:callable" is written down only, and
            they are told it all the same: no file makes code run.
        num_classes: its logits. Default: those that the weights of `model` tell.
        image_size: of its images, in pixels a side.
        mean: of its pixels in [0, 1], with which it is trained: three numbers, or one for all channels, as of grey
            images; a list, a tensor or an array.
        std: likewise.
        classes: their names in label order.
        metrics: accuracies as fractions, such as `{"val_top1": 0.91}`; what is NaN or infinite is left out.

    Returns:
        The path.

    Warns:
        The era is not over, `ema` was never updated, weights or metrics are NaN or infinite, a layer has no live
        weight, two classes have one name, or the last layer gives another number of logits than there are classes.

    Raises:
        BadOption: a name or a fact that cannot be, such as a name that ends in .safetensors, or a `model` whose tensors
            are others.
        StarfireError: it cannot be written; an old file is untouched.
        Mismatch: a dead weight is not zero.
    """
    from starfire_cli.workflows.attach.described import Described
    from starfire_cli.workflows.attach.saving import save as saved

    file = path_argument("path", path, hint=", in save(path, pruner)")
    check_arguments(save, locals())
    with python_errors():
        normalised = Normalisation.given(mean, std)
        return saved(
            file,
            pruner,
            Described(
                model=model_spec(model),
                num_classes=whole_argument("num_classes", num_classes),
                image_size=whole_argument("image_size", image_size),
                mean=normalised.mean,
                std=normalised.std,
                classes=None if classes is None else tuple(classes),
                metrics=dict(metrics or {}),
            ),
        )
