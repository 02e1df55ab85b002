"""Everything one training run holds while it trains, how it is set up, saved, and taken up again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from starfire_cli import runtime
from starfire_cli.data import Data, DataOptions, open_data, recognise
from starfire_cli.errors import BadOption, Mismatch, StarfireError
from starfire_cli.formats import checkpoint as files
from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.formats.run import Run, find_checkpoint, newest_run
from starfire_cli.models import Normalized, build_model, count_macs
from starfire_cli.pruning import Pruner, layers_of_model, select
from starfire_cli.pruning.era import Era
from starfire_cli.records import Plan
from starfire_cli.workflows.optim import LearningRate, build_optimizer
from starfire_cli.workflows.plan import plan_layers
from starfire_cli.workflows.request import TrainRequest, era_steps, fill, pruning_of

# What a resumed run may change; everything else is the run's own. Extending `epochs` is the paper's "extra 10 epochs".
CHANGEABLE = frozenset(
    {
        "epochs",
        "device",
        "workers",
        "compile",
        "data",
        "eval_batch_size",
        "save_every",
        "max_steps",
        "resume",
        "dry_run",
    }
    | {"command", "skip_corrupt"}
)


@dataclasses.dataclass
class Position:
    """Where training stands: finished optimizer steps, and the running sums of the epoch under way."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the next one
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0
    mask_seconds: float = 0.0
    total_seconds: float = 0.0
    best_over: bool = False  # whether the best checkpoint so far was taken after the era
    best_top1: float = -1.0


class Session:
    """One run: data, network, pruner, optimizer, position. Made by `open_session`."""

    def __init__(self, request: TrainRequest, *, resume: Checkpoint | None = None) -> None:
        self.device = runtime.pick_device(request.device)
        runtime.seed_everything(request.seed, deterministic=request.deterministic)
        self.notes: list[str] = []
        name, size = recognise(request.data or "digits")
        if resume is None:
            request, _, _ = fill(request, name, size)
        self.request = request
        self.data = self._open_data(request)
        self.pruning = pruning_of(request)
        self.net = build_model(
            request.model or "", num_classes=len(self.data.info.classes), image_size=self.data.info.image_size
        )
        self.macs = count_macs(self.net, self.data.info.image_size)
        found, unprunable = layers_of_model(self.net)
        layers, exempt = select(found, only=request.only, keep_dense=request.keep_dense)
        masks = resume.masks if resume is not None else None
        if resume is not None:
            self._load_weights(_raw_state(resume), strict=True)
        elif request.init is not None:
            initial = files.load(find_checkpoint(request.init))
            self._load_weights(initial.state, strict=False)
            masks = {k: m for k, m in (initial.masks or {}).items() if k in {layer.key for layer in found}}
            # What came in dead stays dead, also in layers that this run's method does not touch.
            layers += [layer for layer in found if layer not in layers and layer.key in masks]
        channels_last = request.channels_last
        if channels_last is None:
            channels_last = self.device.type == "cuda"
        self.channels_last = channels_last
        self.net.to(self.device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
        self.model = Normalized(self.net, self.data.info.mean, self.data.info.std).to(self.device)

        self.steps_per_epoch = self.data.train.steps
        assert request.epochs is not None
        self.epochs = request.epochs
        self.steps = self.epochs * self.steps_per_epoch
        if self.pruning.target:
            first, last = era_steps(request, self.steps_per_epoch)
        else:
            first, last = 0, 0  # nothing is going to be pruned: the mask is what it is from the start
        if resume is not None:
            first, last = resume.meta["pruning"]["era_steps"]
        self.pruner = Pruner(
            self.net,
            layers,
            conv=self.pruning.conv,
            linear=self.pruning.linear,
            target=self.pruning.target,
            era=Era(first_step=first, last_step=last, ramp=request.ramp, mask_every=request.mask_every),
            masks=masks,
        )
        left = [
            (layer.name, f"--method {self.pruning.method_spec} leaves it alone") for layer in self.pruner.left_alone
        ]
        self.left_out = (*unprunable, *exempt, *left)

        assert request.optimizer is not None and request.lr is not None and request.weight_decay is not None
        assert request.momentum is not None and request.lr_schedule is not None and request.warmup is not None
        self.optimizer = build_optimizer(
            request.optimizer,
            self.net,
            lr=request.lr,
            weight_decay=request.weight_decay,
            momentum=request.momentum,
            nesterov=bool(request.nesterov),
            betas=request.betas,
            norm_weight_decay=request.norm_weight_decay,
        )
        self.rate = LearningRate(
            peak=request.lr,
            schedule=request.lr_schedule,
            steps=self.steps,
            warmup=round(request.warmup * self.steps_per_epoch),
            drops=tuple(round(d * self.steps_per_epoch) for d in request.lr_drops or ()),
            factor=request.lr_drop_factor,
            floor=request.min_lr / request.lr if request.lr else 0.0,
        )
        self.ema: AveragedModel | None = None
        if request.ema is not None:
            self.ema = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(request.ema), use_buffers=True
            ).requires_grad_(False)
        amp = self.device.type == "cuda" if request.amp is None else request.amp
        dtype = torch.bfloat16 if request.amp_dtype == "bf16" else torch.float16
        self.autocast: Callable[[], AbstractContextManager[object]] = nullcontext
        if amp:
            self.autocast = lambda: torch.autocast(self.device.type, dtype=dtype)
        self.amp = request.amp_dtype if amp else "off"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp and dtype is torch.float16)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if request.compile else self.model
        self.at = Position()
        self.era_digests: dict[str, str] = {}  # each layer's mask when the era ended
        if resume is not None:
            self._restore(resume)
        self.pruner.attach(self.optimizer, self.ema.module.net if self.ema is not None else None)
        self.run: Run | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The model whose accuracy is measured and whose weights are saved as `model`: the average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def options(self, request: TrainRequest) -> DataOptions:
        """How the data is to be opened."""
        assert request.batch_size is not None
        return DataOptions(
            batch_size=request.batch_size,
            eval_batch_size=request.eval_batch_size,
            image_size=request.image_size,
            augment=request.augment or "auto",
            seed=request.seed,
            device=self.device,
            workers=request.workers,
            skip_corrupt=request.skip_corrupt,
            val_fraction=request.val_fraction,
            split_seed=request.split_seed,
            limit_train=request.limit_train,
            limit_val=request.limit_val,
        )

    def plan(self) -> Plan:
        """The run before it starts. Raises BadOption where a layer would lose everything."""
        request, info = self.request, self.data.info
        era = self.pruner.era
        per_epoch = self.steps_per_epoch
        timeline: list[tuple[float, str]] = []
        if self.pruning.target:
            timeline = [
                (era.first_step / per_epoch, "pruning begins"),
                (era.last_step / per_epoch, f"target {self.pruning.target:g} reached, the mask is fixed"),
            ]
        if self.rate.schedule == "step":
            timeline += [
                (d / per_epoch, f"learning rate falls to {self.rate.at(d):g}")
                for d in self.rate.drops
                if d < self.steps
            ]
        timeline.append((self.epochs, "training ends"))
        skip = {"command", "resume", "dry_run", "max_steps", "name", "out", "data", "only", "keep_dense"}
        config = {k: v for k, v in dataclasses.asdict(request).items() if k not in skip and v is not None}
        config |= {"data": info.spec, "method": self.pruning.method_spec, "fc": self.pruning.fc_spec}
        config |= {"device": str(self.device), "amp": self.amp, "channels_last": self.channels_last}
        config |= {"image_size": info.image_size}
        return Plan(
            settings=tuple((k.replace("_", "-"), _in_words(v)) for k, v in config.items()),
            notes=(*self.notes, *info.notes),
            layers=plan_layers(self.pruner, self.pruning, self.macs),
            left_out=self.left_out,
            timeline=tuple(sorted(timeline, key=lambda item: item[0])),
            parameters=sum(p.numel() for p in self.net.parameters()),
            macs=sum(self.macs.values()),
        )

    def sparsity(self) -> tuple[float, float]:
        """True sparsity over prunable weights and over all parameters, counted from the masks."""
        dead = sum(self.pruner.zeros.values())
        prunable = sum(layer.weights for layer in self.pruner.layers)
        return dead / max(1, prunable), dead / sum(p.numel() for p in self.net.parameters())

    def meta(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says about itself, in plain values."""
        info = self.data.info
        return {
            "model": {
                "spec": self.request.model,
                "num_classes": len(info.classes),
                "image_size": info.image_size,
            },
            "data": info.as_meta(),
            "pruning": {
                "method": self.pruning.method_spec,
                "fc": self.pruning.fc_spec,
                "target": self.pruning.target,
                "era": [
                    self.pruner.era.first_step / self.steps_per_epoch,
                    self.pruner.era.last_step / self.steps_per_epoch,
                ],
                "era_steps": [self.pruner.era.first_step, self.pruner.era.last_step],
                "ramp": self.request.ramp,
                "keep_dense": list(self.request.keep_dense),
                "only": list(self.request.only),
            },
            "metrics": metrics,
            "versions": runtime.versions(),
            "hardware": runtime.hardware(self.device),
            "command": self.request.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self.request.seed,
            "request": self.request.as_config(),
            "steps_per_epoch": self.steps_per_epoch,
        }

    def save(self, path: Path, metrics: dict[str, Any]) -> None:
        """Write a checkpoint that everything else reads and `--resume` continues from.

        Raises Mismatch if a dead weight is not zero or a mask changed after the era.
        """
        self.pruner.verify()
        self._check_fixed()
        net = self.evaluated.net
        training: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"step": self.at.step},
            "scaler": self.scaler.state_dict(),
            "era": {"step": self.at.step, "digests": self.era_digests},
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            "sampler": {"epoch": self.at.epoch, "batch": self.at.batch, "seed": self.request.seed},
            "position": dataclasses.asdict(self.at),
        }
        if self.ema is not None:  # `model` is the average; what training goes on with lies beside it
            training["raw"] = self.net.state_dict()
            training["ema"] = {"decay": self.request.ema, "updates": int(self.ema.n_averaged)}
        files.save(path, state=net.state_dict(), masks=self.pruner.masks, meta=self.meta(metrics), training=training)

    def era_ended(self) -> None:
        """Remember the masks as they are: from now on none may change."""
        self.era_digests = self.pruner.digests()

    def _check_fixed(self) -> None:
        if not self.era_digests:
            return
        now = self.pruner.digests()
        if changed := [key for key, value in self.era_digests.items() if now.get(key) != value]:
            raise Mismatch(f"the mask of {changed[0]} changed after the era ended ({len(changed)} layers in all)")

    def _open_data(self, request: TrainRequest) -> Data:
        return open_data(request.data or "digits", self.options(request))

    def _load_weights(self, state: dict[str, Tensor], *, strict: bool) -> None:
        """Take weights over; without `strict` a classifier for other classes is left as initialised, and noted."""
        own = self.net.state_dict()
        wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
        missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
        extra = [k for k in state if k not in own]
        head = {
            k
            for k in wrong
            if own[k].shape[1:] == state[k].shape[1:] and own[k].shape[0] == len(self.data.info.classes)
        }
        if missing or extra or (set(wrong) - head) or (strict and wrong):
            first = (missing or extra or wrong)[0]
            what = "is missing there" if missing else "is unknown to the model" if extra else "has another shape"
            count = len(missing) + len(extra) + len(wrong)
            raise StarfireError(
                f"the checkpoint does not fit --model {self.request.model}: {first} {what} ({count} tensors in all)"
            )
        if head:
            self.notes.append(f"{', '.join(sorted(head))} start fresh: the checkpoint was trained on other classes")
        self.net.load_state_dict({k: v for k, v in state.items() if k not in head}, strict=False)

    def _restore(self, checkpoint: Checkpoint) -> None:
        training = checkpoint.training or {}
        meta_steps = checkpoint.meta.get("steps_per_epoch")
        if meta_steps != self.steps_per_epoch:
            raise StarfireError(
                f"{checkpoint.path} was trained with {meta_steps} steps an epoch, these data and options give "
                f"{self.steps_per_epoch}; a run is resumed on the data it began with"
            )
        try:
            self.at = Position(**training["position"])
            self.optimizer.load_state_dict(training["optimizer"])
            self.scaler.load_state_dict(training["scaler"])
            self.era_digests = dict(training["era"]["digests"])
            torch.set_rng_state(training["rng"]["cpu"])
            if self.device.type == "cuda" and len(training["rng"]["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(training["rng"]["cuda"])
            if self.ema is not None:
                self.ema.module.net.load_state_dict(checkpoint.state)
                self.ema.n_averaged.fill_(training["ema"]["updates"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StarfireError(
                f"{checkpoint.path} cannot be resumed: its training state is incomplete ({error!r})"
            ) from error
        self._check_fixed()


def open_session(request: TrainRequest, given: frozenset[str]) -> Session:
    """Set a run up: a new one, or with `resume` the one a checkpoint belongs to.

    Args:
        request: what was asked for.
        given: the names of the fields that the user gave explicitly; a resumed run keeps its own for all others.

    Raises BadOption where a given option contradicts the run that is resumed.
    """
    if request.resume is None:
        return Session(request)
    path = _to_resume(request.resume, request.out)
    checkpoint = files.load(path, training=True)
    if checkpoint.training is None or "request" not in checkpoint.meta:
        raise StarfireError(
            f"{path} holds weights but no training state to resume; --init {path} starts a new run from it"
        )
    stored = TrainRequest.from_config(checkpoint.meta["request"])
    for field in sorted(given - CHANGEABLE):
        if field in ("out", "name", "init"):
            continue
        new, old = getattr(request, field), getattr(stored, field)
        if new != old:
            option = "--" + field.replace("_", "-")
            raise BadOption(
                f"{option} {new} contradicts the run being resumed, which has {old}; "
                f"leave it out, or start a new run from these weights with --init {path}"
            )
    kept = {f: getattr(request, f) for f in given & CHANGEABLE}
    kept |= {"resume": request.resume, "max_steps": request.max_steps, "dry_run": request.dry_run}
    session = Session(dataclasses.replace(stored, **kept, command=request.command), resume=checkpoint)
    if session.at.step > session.steps:
        raise BadOption(f"--epochs {session.epochs} is less than the {session.at.epoch} epochs already trained")
    folder = path.parent
    if Run(folder).config_path.exists():
        session.run = Run(folder)
    return session


def _to_resume(given: Path, out: Path) -> Path:
    """`auto` is the newest run's last checkpoint, a run folder means its last, a file itself."""
    if str(given) == "auto":
        given = newest_run(out).path
    if given.is_dir():
        if not Run(given).last.exists():
            raise StarfireError(
                f"--resume {given}: the folder has no {Run(given).last.name}; give a run folder or a .pt file"
            )
        return Run(given).last
    return given


def _raw_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    raw = (checkpoint.training or {}).get("raw")
    return checkpoint.state if raw is None else raw


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(_in_words(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
