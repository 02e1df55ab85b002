"""Everything one training run holds while it trains, and how it is set up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from starfire_cli import runtime
from starfire_cli.attacks import adversary
from starfire_cli.damage import reading
from starfire_cli.data import DataOptions, open_data, recognise
from starfire_cli.distributed.agreement import Agreement
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run, find_checkpoint
from starfire_cli.models import Normalized, build_model, count_macs
from starfire_cli.networks.lone_images import check_batches, has_batchnorm
from starfire_cli.networks.rebuild import recipe_of
from starfire_cli.pruning import Pruner
from starfire_cli.pruning.channels.recipe import apply_shrink
from starfire_cli.pruning.schedule import Era
from starfire_cli.workflows.recorded import Defaults, fill_from, known_data
from starfire_cli.workflows.train.alike import content
from starfire_cli.workflows.train.compact_state import CompactState
from starfire_cli.workflows.train.cuda_graph import StepGraph, refuse
from starfire_cli.workflows.train.micro_batches import part_sizes
from starfire_cli.workflows.train.optim import LearningRate, build_optimizer
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import era_steps, fill, pruning_of
from starfire_cli.workflows.train.start import take_weights

if TYPE_CHECKING:
    from starfire_cli.distributed.replica import Replica

Decoding = Callable[[str, int, int], None] | None


@dataclasses.dataclass
class Position:
    """Where training stands: what is finished, and the running sums of the epoch under way."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the next one
    step: int = 0  # finished optimizer steps
    images: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0
    mask_seconds: float = 0.0
    best_over: bool = False  # whether the best checkpoint so far was taken after the era
    best_top1: float = -1.0


class Session:
    """One run: data, network, pruner, optimizer, position.

    Args:
        request: what was asked for; with `resume`, the resumed run's own request.
        resume: the checkpoint whose weights and masks to go on with (see `resuming.take_up`).
        given: which fields of the request the user gave explicitly; a checkpoint's record does not replace them.
        decoding: told (what, done, all) while small images are decoded once.
        ranks: this process among those that train together; none of them is waited for before `spread`.

    Raises BadOption and StarfireError for what does not fit together.
    """

    def __init__(
        self,
        request: TrainRequest,
        *,
        resume: Checkpoint | None = None,
        given: frozenset[str] = frozenset(),
        decoding: Decoding = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.device = runtime.pick_device(request.device, self.ranks.world)
        runtime.seed_everything(request.seed, deterministic=request.deterministic)
        initial, defaults = resume, None
        if resume is None:
            if request.init is not None:
                initial = load(find_checkpoint(request.init), weights=request.weights)
                defaults = fill_from(initial, request, given)
                request = defaults.request
            request = fill(request, *_recognised(request, defaults))
        self.request = request
        self.pruning = pruning_of(request)
        # Faster on both by a quarter and more; other devices are left as they are.
        faster = self.device.type in ("cpu", "cuda")
        self.channels_last = faster if request.channels_last is None else request.channels_last
        self.forward: Callable[[Tensor], Tensor]
        # A run that goes on from a checkpoint is validated as that was.
        known = known_data(initial, request.data) if initial is not None and request.init is not None else None
        self.data = open_data(
            "digits" if request.data is None else request.data, self._data_options(decoding), known=known
        )
        if request.mean is not None or request.std is not None:
            own = self.data.info
            own = dataclasses.replace(own, mean=request.mean or own.mean, std=request.std or own.std)
            self.data = dataclasses.replace(self.data, info=own)
        info = self.data.info
        chosen = "" if request.data else "; choose others with --data PATH or --data NAME (docs/data.md)"
        self.notes = [
            f"data: {info.name}, {info.train_images:,} training and {info.val_images:,} validation images of "
            f"{info.image_size} px in {len(info.classes)} classes{chosen}"
        ]
        if defaults is not None:
            self.notes += defaults.describe(request, info)
        assert request.model is not None and request.epochs is not None
        self.net = build_model(request.model, num_classes=len(info.classes), image_size=info.image_size)
        self.checkpoint_digest = ""  # of all that is taken from it, for a comparison with other ranks
        if initial is not None and self.ranks.count > 1:
            self.checkpoint_digest = content([initial.state, initial.masks or {}, initial.training or {}])
        # What prune-mask --shrink made smaller stays so.
        self.shrink = recipe_of(initial) if initial is not None else {}
        apply_shrink(self.net, self.shrink)
        self.macs = count_macs(self.net, info.image_size)
        self.pairs = has_batchnorm(self.net)
        if not (request.sync_bn and self.ranks.count > 1):  # which takes the statistics of all ranks together
            images, side = len(self.data.train), info.image_size
            check_batches(self.net, side, batch=request.batch_size or 1, images=images, ranks=self.ranks.count)
        self.steps_per_epoch = self.data.train.steps
        self.epochs = request.epochs
        self.steps = self.epochs * self.steps_per_epoch
        start = take_weights(self.net, request, len(info.classes), resume=resume, initial=initial)
        self.left_out = start.left_out
        self.notes += start.notes
        self.net.to(self.device)
        if request.sync_bn:
            self._sync_norms()
        if self.channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.model = Normalized(self.net, info.mean, info.std).to(self.device)
        self.pruner = Pruner(
            self.net,
            start.layers,
            conv=self.pruning.conv,
            linear=self.pruning.linear,
            target=self.pruning.target,
            era=self._era(resume),
            masks=start.masks,
            kernels=request.kernels,
        )
        untouched = f"--method {self.pruning.method_spec} --fc {self.pruning.fc_spec} leave it alone"
        self.left_out += [(layer.name, untouched) for layer in self.pruner.left_alone]
        self.adversary = adversary(request.adversarial, request.seed) if request.adversarial else None
        self._optimisation()
        self._precision()
        if request.cuda_graphs:
            refuse(request, self.device, self.ranks.count)
        self.pruner.attach(self.optimizer, self.averaged)
        self.replica: Replica | None = None
        self.agreement = Agreement(self.ranks, self.pruner)
        self.compact: CompactState | None = None
        self.graph: StepGraph | None = None
        self.exact = torch.float32 if self.device.type == "mps" else torch.float64  # mps has no float64
        self.at = Position()
        self.era_digests: dict[str, str] = {}  # each layer's mask as it was when the era ended
        self.run: Run | None = None
        self.resumed = resume is not None
        if self.ranks.rank:  # what the network draws in training, each rank draws for itself
            torch.manual_seed(self.ranks.own_seed(request.seed))

    def spread(self) -> None:
        """Train together with the other ranks from now on; rank 0's weights are taken. All ranks come here."""
        if self.ranks.count > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            from starfire_cli.distributed.replica import Replica

            self.agreement.steps(self.at.epoch, self.at.batch, self.data.train.steps, self.data.val.steps)
            if not self.resumed:
                self.ranks.take_first(self.model.buffers())
            self.replica = Replica(self.model, self.device)
            module = self.replica.module
            self.forward = torch.compile(module) if self.request.compile else module
            count, batch = self.ranks.count, self.request.batch_size or 0
            each = f"{batch // count}{f' or {batch // count + 1}' if batch % count else ''}"
            self.notes.append(f"{count} processes: {batch} images a step in all, {each} each")
        if self.at.step >= self.pruner.era.last_step:
            self.masks_are_fixed()

    def delays(self) -> Iterator[str]:
        """What will be compiled on the way, as lines for the user."""
        if delay := self.pruner.delay:
            yield delay
        if self.request.compile:
            yield "the first step waits for torch.compile, half a minute or more if nothing is cached"

    def masks_are_fixed(self) -> None:
        """From now on no mask changes: nothing of dead weights is sent, nor kept where `--compact-state` asks so."""
        if self.request.compact_state and self.compact is None:
            self.compact = CompactState(self.optimizer, self.pruner.weights, self.pruner.masks)
        if self.replica is not None:
            self.replica.sending.leave_out(self.pruner.weights, self.pruner.masks)

    def syncing(self, last: bool) -> AbstractContextManager[None]:
        """For the passes of a part of a batch: with several ranks, gradients are exchanged in the `last` alone."""
        return nullcontext() if self.replica is None else self.replica.syncing(last)

    def whole_batch(self, share: int) -> int:
        """Images of the batch under way, of all ranks together; this one has `share` of them."""
        if self.ranks.count == 1:
            return share
        if self.request.skip_corrupt:  # nobody knows how many the others have lost
            whole = int(self.ranks.totals(share)[0])
            if not whole:
                raise StarfireError(f"all images of step {self.at.step + 1} are corrupt")
            return whole
        size = self.request.batch_size or 0
        return min(size, len(self.data.train) - self.at.batch * size)

    @property
    def averaged(self) -> nn.Module | None:
        """The network of averaged weights, if `--ema` asked for one."""
        if self.ema is None:
            return None
        assert isinstance(self.ema.module, Normalized)
        return self.ema.module.net

    @property
    def evaluated(self) -> nn.Module:
        """The model whose accuracy is measured and whose weights are saved as `model`: the average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def sparsity(self) -> tuple[float, float]:
        """True sparsity over prunable weights and over all parameters, counted from the masks."""
        dead = sum(self.pruner.zeros.values())
        prunable = sum(layer.weights for layer in self.pruner.layers)
        return dead / max(1, prunable), dead / sum(p.numel() for p in self.net.parameters())

    def _data_options(self, decoding: Decoding) -> DataOptions:
        request = self.request
        assert request.batch_size is not None
        if request.batch_size < self.ranks.count:
            raise BadOption(
                f"--batch-size {request.batch_size} is for all {self.ranks.count} processes together, and each needs "
                f"an image; --batch-size {self.ranks.count} or more works"
            )
        return DataOptions(
            batch_size=request.batch_size,
            eval_batch_size=request.eval_batch_size,
            image_size=request.image_size,
            augment="auto" if request.augment is None else request.augment,
            seed=request.seed,
            device=self.device,
            workers=request.workers,
            skip_corrupt=request.skip_corrupt,
            val_fraction=request.val_fraction,
            split_seed=request.split_seed,
            limit_train=request.limit_train,
            limit_val=request.limit_val,
            channels_last=self.channels_last,
            rank=self.ranks.rank,
            ranks=self.ranks.count,
            progress=decoding,
        )

    def _era(self, resume: Checkpoint | None) -> Era:
        request = self.request
        if resume is not None:  # in steps, so that more epochs do not move it
            with reading(resume.path, "what it says of its era"):
                first, last = (int(step) for step in resume.meta["pruning"]["era_steps"])
        elif self.pruning.target:
            first, last = era_steps(request, self.steps_per_epoch)
        else:
            first, last = 0, 0  # nothing is going to be pruned: the masks are what they are from the start
        return Era(first_step=first, last_step=last, ramp=request.ramp, mask_every=request.mask_every)

    def _optimisation(self) -> None:
        request = self.request
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
            average = get_ema_multi_avg_fn(request.ema)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)

    def _sync_norms(self) -> None:
        if self.device.type != "cuda":
            raise BadOption(
                f"--sync-bn is torch's SyncBatchNorm, which runs on CUDA, and this is {self.device}; without it the "
                "ranks' running statistics are averaged"
            )
        if self.ranks.count > 1:
            self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)  # type: ignore[no-untyped-call]

    def _precision(self) -> None:
        request, device = self.request, self.device.type
        amp = device == "cuda" if request.amp is None else request.amp
        dtype = torch.bfloat16 if request.amp_dtype == "bf16" else torch.float16
        self.amp = request.amp_dtype if amp else "off"
        self.autocast: Callable[[], AbstractContextManager[object]] = nullcontext
        if amp:
            self.autocast = lambda: torch.autocast(device, dtype=dtype)
        self.scaler = torch.amp.GradScaler(device, enabled=amp and dtype is torch.float16)
        self.forward = self._compiled() if request.compile else self.model

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """The model, compiled for batches of the usual size: an epoch's last one is not worth another compilation."""
        request, compiled = self.request, torch.compile(self.model, dynamic=False)
        batch = min(request.batch_size or 1, len(self.data.train))
        usual = part_sizes(batch, request.accumulate, pairs=self.pairs)[0]
        return lambda pixels: compiled(pixels) if len(pixels) == usual else self.model(pixels)


def _recognised(request: TrainRequest, defaults: Defaults | None) -> tuple[str, int | None]:
    """Name and side of the request's data (see `recognise`)."""
    try:
        return recognise("digits" if request.data is None else request.data)
    except StarfireError as error:
        if defaults is None or "data" not in defaults.filled:
            raise
        raise StarfireError(
            f"the data that {defaults.checkpoint.path} names cannot be opened ({error}); --data PATH says where they "
            "are now"
        ) from None
