"""The optimisation of a run: optimizer, learning rate, moving average, and the precision of its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from starfire_cli.models import Normalized
from starfire_cli.workflows.train.network import TrainingNetwork
from starfire_cli.workflows.train.optimizers import LearningRate, build_optimizer
from starfire_cli.workflows.train.request import TrainRequest


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """The optimizer of a run, with its schedule and length.

    Args:
        optimizer: over all weights that train.
        rate: the learning rate by step.
        epochs: in all.
        epochs_a_round: after which learning rate and data begin again.
        steps_per_epoch: optimizer steps, equal on all ranks.
        ema: the moving average of the weights, if `--ema` asked for one.
    """

    optimizer: torch.optim.Optimizer
    rate: LearningRate
    epochs: int
    epochs_a_round: int
    steps_per_epoch: int
    ema: AveragedModel | None

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * self.steps_per_epoch

    @property
    def averaged(self) -> nn.Module | None:
        """The network of averaged weights, if `--ema` asked for one."""
        if self.ema is None:
            return None
        assert isinstance(self.ema.module, Normalized)
        return self.ema.module.net


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The precision of the arithmetic, and the scaling of losses that float16 needs.

    Args:
        amp: "bf16", "fp16" or "off".
        autocast: the context of the forward pass.
        scaler: of the loss; does nothing but for fp16.
        exact: the dtype of running sums.
    """

    amp: str
    autocast: Callable[[], AbstractContextManager[object]]
    scaler: torch.amp.GradScaler
    exact: torch.dtype


def build_optimisation(
    request: TrainRequest, network: TrainingNetwork, steps_per_epoch: int, trainings: int = 1
) -> Optimisation:
    """The optimizer, its rate and the average of the filled request, for so many trainings. Raises BadOption."""
    assert request.optimizer is not None and request.lr is not None and request.weight_decay is not None
    assert request.momentum is not None and request.lr_schedule is not None and request.warmup is not None
    assert request.epochs is not None
    optimizer = build_optimizer(
        request.optimizer,
        network.net,
        lr=request.lr,
        weight_decay=request.weight_decay,
        momentum=request.momentum,
        nesterov=bool(request.nesterov),
        betas=request.betas,
        norm_weight_decay=request.norm_weight_decay,
    )
    rate = LearningRate(
        peak=request.lr,
        schedule=request.lr_schedule,
        steps=request.epochs * steps_per_epoch,
        warmup=round(request.warmup * steps_per_epoch),
        drops=tuple(round(d * steps_per_epoch) for d in request.lr_drops or ()),
        factor=request.lr_drop_factor,
        floor=request.min_lr / request.lr if request.lr else 0.0,
        repeats=trainings > 1,
    )
    ema: AveragedModel | None = None
    if request.ema is not None:
        average = get_ema_multi_avg_fn(request.ema)  # type: ignore[no-untyped-call]
        ema = AveragedModel(network.model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)
    return Optimisation(
        optimizer=optimizer,
        rate=rate,
        epochs=request.epochs * trainings,
        epochs_a_round=request.epochs,
        steps_per_epoch=steps_per_epoch,
        ema=ema,
    )


def build_precision(request: TrainRequest, device: torch.device) -> Precision:
    """The arithmetic of `--amp` and `--amp-dtype` on a device: mixed on CUDA, float32 elsewhere, unless asked."""
    amp = device.type == "cuda" if request.amp is None else request.amp
    dtype = torch.bfloat16 if request.amp_dtype == "bf16" else torch.float16
    return Precision(
        amp=request.amp_dtype if amp else "off",
        autocast=(lambda: torch.autocast(device.type, dtype=dtype)) if amp else nullcontext,
        scaler=torch.amp.GradScaler(device.type, enabled=amp and dtype is torch.float16),
        exact=torch.float32 if device.type == "mps" else torch.float64,  # mps has no float64
    )
