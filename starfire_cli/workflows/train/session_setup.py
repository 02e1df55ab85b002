"""Sets a session up: a request becomes the parts of a run, one builder after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from starfire_cli import runtime
from starfire_cli.attacks import Adversary, adversary
from starfire_cli.damage import DamagedFile
from starfire_cli.distributed.agreement import Agreement
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run, find_checkpoint
from starfire_cli.networks.model_spec import runs_code
from starfire_cli.pruning import NetworkMethod, Pruner
from starfire_cli.pruning.schedule import Era
from starfire_cli.workflows.init_defaults import Defaults, fill_from, known_data
from starfire_cli.workflows.train.cuda_graph import unsupported_reason
from starfire_cli.workflows.train.fixed_masks import FixedMasks
from starfire_cli.workflows.train.idle import idle_notes, refuse_exempt
from starfire_cli.workflows.train.micro_batches import part_sizes
from starfire_cli.workflows.train.network import TrainingNetwork, open_network
from starfire_cli.workflows.train.optimisation import build_optimisation, build_precision
from starfire_cli.workflows.train.position import Position
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.settings import Pruning, era_steps, fill, pruning_of, refuse_unshrinkable
from starfire_cli.workflows.train.sparse_compute import SparseCompute, build_sparse_compute
from starfire_cli.workflows.train.start import leave_fixed
from starfire_cli.workflows.train.tickets import tickets_of
from starfire_cli.workflows.train.training_data import Decoding, data_note, open_training_data, recognise_data


def build_session(
    request: TrainRequest,
    *,
    resume: Checkpoint | None = None,
    folder: Run | None = None,
    given: frozenset[str] = frozenset(),
    decoding: Decoding = None,
    ranks: Ranks | None = None,
) -> Session:
    """Set one run up, part by part. No other rank is waited for before `join_ranks`.

    Args:
        request: what was asked for; with `resume`, the resumed run's own request.
        resume: the checkpoint whose weights and masks to go on with (see `resume.restore_training_state`).
        folder: that a resumed run is in.
        given: which fields of the request the user gave explicitly; a checkpoint's record does not replace them.
        decoding: told (what, done, all) while small images are decoded once.
        ranks: this process among those that train together.

    Raises BadOption and StarfireError for what does not fit together.
    """
    ranks = ranks or Ranks()
    device = runtime.pick_device(request.device, ranks.world)
    runtime.seed_everything(request.seed, deterministic=request.deterministic)
    initial, defaults = resume, None
    if resume is None:
        request, initial, defaults = _filled(request, given)
    pruning = pruning_of(request)
    # Faster on both by a quarter and more; other devices are left as they are.
    faster = device.type in ("cpu", "cuda")
    channels_last = faster if request.channels_last is None else request.channels_last
    # A run that goes on from a checkpoint is validated as that was.
    known = known_data(initial, request.data) if initial is not None and request.init is not None else None
    data = open_training_data(request, device, ranks, channels_last=channels_last, known=known, decoding=decoding)
    notes = [data_note(request, data.info), *(defaults.describe(request, data.info) if defaults else ())]
    if "target" in given and pruning.shown_target is None:
        notes.append(f"--target {request.target:g}: --method {pruning.method_spec} meets none; what comes out is shown")
    network = open_network(request, data, device, ranks, channels_last=channels_last, resume=resume, initial=initial)
    if getattr(pruning.conv, "free_outputs_only", False):
        leave_fixed(network.start, network.net, data.info.image_size)
    if resume is None:
        refuse_exempt(network.start.layers, network.start.left_out, pruning)
    if pruning.shrinking is not None:
        refuse_unshrinkable(request, network.net)
    tickets = tickets_of(pruning, request.epochs, data.train.steps)
    era = tickets.era if tickets is not None else _era(request, pruning, data.train.steps, resume)
    pruner = build_pruner(request, pruning, network, era)
    notes += idle_notes(pruner, pruning)
    if resume is None and request.init is not None and not pruner.monotone and any(pruner.zeros.values()):
        raise BadOption(
            f"--init {request.init} has dead weights, which stay dead, and --method {pruning.method_spec} revives "
            "weights; start from a dense checkpoint, or go on with a method that revives none, such as gmp"
        )
    made = adversary(request.adversarial, request.seed) if request.adversarial else None
    trainings = tickets.trainings if tickets is not None else 1
    optimisation = build_optimisation(request, network, data.train.steps, trainings)
    precision = build_precision(request, device)
    pruner.attach(optimisation.optimizer, optimisation.averaged)
    position = Position()
    fixed = FixedMasks(
        pruner,
        optimisation.optimizer,
        compact_state=request.compact_state,
        reads_gradients=request.clip_grad is not None,
        scaled=precision.scaler.is_enabled(),
        codebook=pruning.codebook,
        shared=network.weights,
    )
    if ranks.rank:  # what the network draws in training, each rank draws for itself
        torch.manual_seed(ranks.own_seed(request.seed))
    sparse = build_sparse(request, network, ranks)
    return Session(
        request=request,
        pruning=pruning,
        ranks=ranks,
        data=data,
        network=network,
        optimisation=optimisation,
        precision=precision,
        adversary=made,
        sparse=sparse,
        forward=build_forward(request, network, sparse, len(data.train)),
        pruner=pruner,
        position=position,
        fixed=fixed,
        captures=wants_graphs(request, device, ranks.count, made),
        agreement=Agreement(ranks, pruner),
        tickets=tickets,
        folder=folder,
        resumed=resume is not None,
        notes=(*notes, *network.start.notes, *((tickets.describe(),) if tickets is not None else ())),
    )


def join_ranks(session: Session) -> Session:
    """The session that trains together with the other ranks; rank 0's weights are taken. All ranks come here."""
    ranks, request, position, model = session.ranks, session.request, session.position, session.network.model
    if ranks.count > 1:
        device = session.network.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        from starfire_cli.distributed.replica import Replica

        session.agreement.steps(position.epoch, position.batch, session.data.train.steps, session.data.val.steps)
        if not session.resumed:
            ranks.take_first(model.buffers())
        session.pruner.use_average(ranks.average)
        session = session.sharing(Replica(session.sparse.model(model), device))
        batch = request.batch_size or 0
        each = f"{batch // ranks.count}{f' or {batch // ranks.count + 1}' if batch % ranks.count else ''}"
        session = session.noting(f"{ranks.count} processes: {batch} images a step in all, {each} each")
    if position.step >= session.pruner.era.last_step:
        session.fixed.begin()
    if session.fixed.values is not None and not session.resumed:
        session = session.noting(session.fixed.values.describe())
    return session


def _filled(request: TrainRequest, given: frozenset[str]) -> tuple[TrainRequest, Checkpoint | None, Defaults | None]:
    """A new run's request without gaps; the checkpoint of `--init`, and what of the request its record filled."""
    initial, defaults = None, None
    if request.values is not None and request.init is None:
        raise BadOption(
            f"--values {request.values} shares the values of a network that is trained: --init CHECKPOINT says which"
        )
    if request.init is not None:
        initial = load(find_checkpoint(request.init), weights=request.weights)
        defaults = fill_from(initial, request, given)
        request = defaults.request
    return fill(request, *recognise_data(request, defaults)), initial, defaults


def build_pruner(request: TrainRequest, pruning: Pruning, network: TrainingNetwork, era: Era) -> Pruner:
    """The pruner of a network with what is dead in it already. Raises BadOption."""
    return Pruner(
        network.net,
        network.start.layers,
        conv=pruning.conv,
        linear=pruning.linear,
        target=pruning.target,
        era=era,
        masks=network.start.masks,
        kernels=request.kernels,
        seed=request.seed,
    )


def wants_graphs(request: TrainRequest, device: torch.device, ranks: int, adversary: Adversary | None) -> bool:
    """Whether steps are to be captured as CUDA graphs. Raises BadOption where that was asked for and cannot be had."""
    if request.cuda_graphs == "off":
        return False
    why = unsupported_reason(
        device,
        ranks,
        optimizer=request.optimizer,
        fp16=request.amp_dtype == "fp16" and request.amp is not False,
        adversary=adversary,
        values=request.values,
    )
    if request.cuda_graphs == "on" and why is not None:
        raise BadOption(f"--cuda-graphs {why}")
    # Code of the user's own may decide things anew at each step, which a graph would freeze: only if asked.
    unasked = request.cuda_graphs == "auto" and request.model is not None and runs_code(request.model)
    return why is None and not unasked


def build_sparse(request: TrainRequest, network: TrainingNetwork, ranks: Ranks) -> SparseCompute:
    """The sparse compute that `--sparse-compute` asks for. Raises BadOption where it cannot be had."""
    return build_sparse_compute(
        request.sparse_compute,
        network,
        batch=-(-(request.batch_size or 1) // ranks.count),
        accumulate=request.accumulate,
        compiled=request.compile,
        mixed=bool(request.amp),
        deterministic=request.deterministic,
    )


def build_forward(
    request: TrainRequest, network: TrainingNetwork, sparse: SparseCompute, images: int
) -> Callable[[Tensor], Tensor]:
    """The function that a step calls where one process trains: the model, compiled if that was asked for."""
    return _compiled(request, network, images) if request.compile else sparse.model(network.model)


def _era(request: TrainRequest, pruning: Pruning, steps_per_epoch: int, resume: Checkpoint | None) -> Era:
    if resume is not None:  # in steps, so that more epochs do not move it
        steps = resume.meta.pruning.era_steps
        if steps is None:
            raise DamagedFile(f"{resume.path} is damaged: what it says of its era: era_steps is missing")
        first, last = steps
    elif isinstance(pruning.conv, NetworkMethod) and not pruning.conv.axes().has_era:
        first, last = 0, 1  # the mask is made before the first step
    elif pruning.target:
        first, last = era_steps(request, steps_per_epoch)
    else:
        first, last = 0, 0  # nothing is going to be pruned: the masks are what they are from the start
    return Era(first_step=first, last_step=last, ramp=request.ramp, mask_every=request.mask_every)


def _compiled(request: TrainRequest, network: TrainingNetwork, images: int) -> Callable[[Tensor], Tensor]:
    """The model, compiled for batches of the usual size: an epoch's last one is not worth another compilation."""
    model, compiled = network.model, torch.compile(network.model, dynamic=False)
    batch = min(request.batch_size or 1, images)
    usual = part_sizes(batch, request.accumulate, pairs=network.pairs)[0]
    return lambda pixels: compiled(pixels) if len(pixels) == usual else model(pixels)
